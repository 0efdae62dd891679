#!/usr/bin/env bash
# Build the indexes of a training run without GPUs, so that its ranks do not wait for one of them:
# $OUTPUT/index-cache.
#   OUTPUT  directory of this run's boxes
#   ARM     repetition, sbp (the default) or oracle; or tune
#   RUN_NODES, RUN_GPUS_PER_NODE  those of the run (8 and 8)
#   RUN_NODES=16 OUTPUT=/scratch/sbp sbatch slurm/build_indexes.sh
#SBATCH --job-name=build_indexes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# shellcheck source=slurm/common.sh
cd "$SLURM_SUBMIT_DIR" && source slurm/common.sh || exit 2

: "${RUN_NODES=8}" "${RUN_GPUS_PER_NODE=8}"
# shellcheck disable=SC2034 # read by train
INDEXES_ONLY=yes
if [ "${ARM:-}" = tune ]; then
    unset ARM
    tune
else
    pretrain
fi
