#!/usr/bin/env bash
# Draw synthetic documents, every element of the array one part: $OUTPUT/synthetic/part-*.
#   OUTPUT  directory of this run's boxes
#   CORPUS  prefixes of the corpus, by default $OUTPUT/corpus/real
#   PARTS   number of all parts; needed where only some of them are submitted
#   OUTPUT=/scratch/sbp sbatch --array=1-64 slurm/synthesize.sh
#SBATCH --job-name=synthesize
#SBATCH --array=1-16
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

# shellcheck source=slurm/common.sh
cd "$SLURM_SUBMIT_DIR" && source slurm/common.sh || exit 2

: "${PARTS=$SLURM_ARRAY_TASK_COUNT}"
part=$OUTPUT/synthetic/part-$(printf %03d "$SLURM_ARRAY_TASK_ID")
recipe synthesize
stage "$part" ranks synthesize --load "$OUTPUT/synthesizer" --corpus "${corpus[@]}" \
    --part "$SLURM_ARRAY_TASK_ID/$PARTS" --output-prefix "$part/synthetic"
