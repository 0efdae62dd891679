#!/usr/bin/env bash
# Score the runs on every source of held-out documents, $OUTPUT/evaluations, and write the report:
# $OUTPUT/report/report.html.
#   OUTPUT   directory of this run's boxes
#   CORPUS   prefixes of the corpus, by default $OUTPUT/corpus/real
#   SOURCES  prefixes of the documents to score on, by default those held out of the corpus
#   TASKS    tasks of lm-evaluation-harness, by default none; their data must be there
#   OUTPUT=/scratch/sbp sbatch slurm/evaluate.sh
#SBATCH --job-name=evaluate
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

read -ra sources <<<"${SOURCES:-$HELDOUT}"
read -ra tasks <<<"${TASKS:-}"
recipe evaluate
for run in repetition sbp oracle; do
    [ ! -e "$OUTPUT/$run/manifest.json" ] ||
        part "$OUTPUT/evaluations/$run" ranks evaluate --load "$OUTPUT/$run" \
            --corpus "${sources[@]}" ${tasks:+--tasks "${tasks[@]}"} \
            --tokenizer "$TOKENIZER" --output "$OUTPUT/evaluations/$run"
done

shopt -s nullglob
parts=("$OUTPUT"/synthetic/part-*/manifest.json)
arguments=()
stage "$OUTPUT/report" once report --corpus "${corpus[@]}" "$HELDOUT" \
    --embeddings "$OUTPUT/embeddings" --pairs "$OUTPUT/pairs" --baseline "$OUTPUT/repetition" \
    --synthesizer "$OUTPUT/synthesizer" \
    ${parts:+--synthetic "${parts[@]/%manifest.json/synthetic}"} \
    --filtered "$OUTPUT/filtered/synthetic" \
    --audit "$OUTPUT/audit" --joint "$OUTPUT/sbp" --output "$OUTPUT/report"
