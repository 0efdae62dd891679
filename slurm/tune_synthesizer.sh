#!/usr/bin/env bash
# Tune the repetition baseline on the pairs, into a synthesizer: $OUTPUT/synthesizer.
#   OUTPUT  directory of this run's boxes
#   CORPUS  prefixes of the corpus, by default $OUTPUT/corpus/real
#   OUTPUT=/scratch/sbp sbatch --nodes=8 slurm/tune_synthesizer.sh
#SBATCH --job-name=tune_synthesizer
#SBATCH --nodes=8
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# shellcheck source=slurm/common.sh
cd "$SLURM_SUBMIT_DIR" && source slurm/common.sh || exit 2

tune
