#!/usr/bin/env bash
# Measure the synthetic documents beside the real ones: $OUTPUT/audit.
#   OUTPUT  directory of this run's boxes
#   CORPUS  prefixes of the corpus, by default $OUTPUT/corpus/real
#   OUTPUT=/scratch/sbp sbatch slurm/audit.sh
#SBATCH --job-name=audit
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# shellcheck source=slurm/common.sh
cd "$SLURM_SUBMIT_DIR" && source slurm/common.sh || exit 2

recipe audit
stage "$OUTPUT/audit" once audit_synthetic --synthetic "$OUTPUT/filtered/synthetic" \
    --corpus "${corpus[@]}" "$HELDOUT" --pairs "$OUTPUT/pairs" --output "$OUTPUT/audit"
