#!/usr/bin/env bash
# Documents to the corpus $OUTPUT/corpus/real, with a part held out and the tokenizer.
#   INPUT   files of documents: JSON Lines (.gz, .zst), Parquet or text
#   OUTPUT  directory of this run's boxes
#   INPUT="dclm/*.jsonl.zst" OUTPUT=/scratch/sbp sbatch slurm/preprocess.sh
#SBATCH --job-name=preprocess
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

need INPUT "files of documents"
recipe preprocess
# shellcheck disable=SC2086 # a list of files, with wildcards
stage "$OUTPUT/corpus" once preprocess_documents --input $INPUT --output-prefix "$OUTPUT/corpus/real" \
    --workers "$SLURM_CPUS_PER_TASK"
