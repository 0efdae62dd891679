#!/usr/bin/env bash
# Compare the runs and write the report: $OUTPUT/report/report.html.
#   OUTPUT  directory of this run's boxes
#   CORPUS  prefixes of the corpus, by default $OUTPUT/corpus/real
#   OUTPUT=/scratch/sbp sbatch slurm/evaluate.sh
#SBATCH --job-name=evaluate
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

recipe evaluate
stage "$OUTPUT/report" once report --corpus "${corpus[@]}" "$HELDOUT" \
    --embeddings "$OUTPUT/embeddings" --pairs "$OUTPUT/pairs" --baseline "$OUTPUT/repetition" \
    --synthesizer "$OUTPUT/synthesizer" --filtered "$OUTPUT/filtered/synthetic" \
    --audit "$OUTPUT/audit" --joint "$OUTPUT/sbp" --output "$OUTPUT/report"
