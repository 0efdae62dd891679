#!/usr/bin/env bash
# Mine pairs of related documents from the embeddings: $OUTPUT/pairs.
#   OUTPUT  directory of this run's boxes
#   CORPUS  prefixes of the corpus, by default $OUTPUT/corpus/real
#   OUTPUT=/scratch/sbp sbatch --nodes=4 slurm/mine_pairs.sh
#SBATCH --job-name=mine_pairs
#SBATCH --nodes=2
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

recipe mine
stage "$OUTPUT/pairs" ranks mine_pairs --embeddings "$OUTPUT/embeddings" \
    --corpus "${corpus[@]}" "$HELDOUT" --output "$OUTPUT/pairs"
