#!/usr/bin/env bash
# Embed every document of the corpus: $OUTPUT/embeddings.
#   OUTPUT  directory of this run's boxes
#   CORPUS  prefixes of the corpus, by default $OUTPUT/corpus/real
#   OUTPUT=/scratch/sbp sbatch --nodes=4 slurm/embed.sh
#SBATCH --job-name=embed
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

recipe embed
stage "$OUTPUT/embeddings" ranks embed_documents --corpus "${corpus[@]}" "$HELDOUT" \
    --output "$OUTPUT/embeddings"
