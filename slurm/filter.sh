#!/usr/bin/env bash
# Leave out synthetic documents that are unended, short, repetitive, copies or duplicates:
# $OUTPUT/filtered.
#   OUTPUT  directory of this run's boxes
#   CORPUS  prefixes of the corpus, by default $OUTPUT/corpus/real
#   OUTPUT=/scratch/sbp sbatch slurm/filter.sh
#SBATCH --job-name=filter
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# shellcheck source=slurm/common.sh
cd "$SLURM_SUBMIT_DIR" && source slurm/common.sh || exit 2

recipe filter
parts=("$OUTPUT"/synthetic/part-*/manifest.json)
stage "$OUTPUT/filtered" once filter_synthetic --synthetic "${parts[@]/%manifest.json/synthetic}" \
    --corpus "${corpus[@]}" --output-prefix "$OUTPUT/filtered/synthetic"
