#!/usr/bin/env bash
# Pretrain the 6B model on real and synthetic documents: $OUTPUT/sbp.
#   OUTPUT  directory of this run's boxes
#   CORPUS  prefixes of the corpus, by default $OUTPUT/corpus/real; SYNTHETIC those of the synthetic
#           documents, by default $OUTPUT/filtered/synthetic
#   ARM     sbp (the default), repetition (real documents alone) or oracle (those of $ORACLE)
#   SCALE   200b (the default) or 1t
#   OUTPUT=/scratch/sbp sbatch --nodes=16 slurm/pretrain_6b.sh
#SBATCH --job-name=pretrain_6b
#SBATCH --nodes=8
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

: "${SIZE=6b}"
# shellcheck source=slurm/common.sh
cd "$SLURM_SUBMIT_DIR" && source slurm/common.sh || exit 2

pretrain
