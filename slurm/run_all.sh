#!/usr/bin/env bash
# Submit the whole loop, from documents to the report, as jobs that wait for each other, and print
# the graph. A stage whose box is complete is left out, so the same command continues a loop.
#   INPUT   files of documents; or CORPUS, prefixes of a corpus that exists
#   OUTPUT  directory of this run's boxes
#   RECIPE  3b_200b (the default), 3b_1t, 6b_200b, 6b_1t, 300m_4b, quickstart (with GPU=cpu) or a path
#   PARTS   jobs that synthesize (16)
#   INPUT="dclm/*.jsonl.zst" OUTPUT=/scratch/sbp slurm/run_all.sh [--dry-run]

# shellcheck source=slurm/common.sh
cd "$(dirname "$0")/.." && source slurm/common.sh || exit 2
: "${NODES=8}" "${GPUS_PER_NODE=8}" "${CPUS_PER_TASK=12}" "${PARTS=16}"
[ -n "${INPUT:-}" ] || [ -e "${corpus[0]}.idx" ] ||
    stop "INPUT is not set, and there is no ${corpus[0]}.idx: give files of documents, or CORPUS"
dry=
case $* in
    "") ;;
    --dry-run) dry=yes ;;
    *) stop "$*: there is only --dry-run" ;;
esac
export OUTPUT CORPUS HELDOUT TOKENIZER RECIPE PARTS INPUT=${INPUT:-}
size=6b
[[ $RECIPE == 6b* ]] || size=3b
gpus="--gpus-per-node=$GPUS_PER_NODE --ntasks-per-node=$GPUS_PER_NODE"
gpus+=" --cpus-per-task=$CPUS_PER_TASK $GPU_FLAGS"

# submit NAME BOX "NAMES OF JOBS BEFORE" SCRIPT FLAGS...: submit a job, unless its box is complete.
declare -A jobs
submit() {
    local name=$1 box=$OUTPUT/$2 before='' after job
    for after in $3; do
        [ -z "${jobs[$after]:-}" ] || before+=:${jobs[$after]}
    done
    local command=(sbatch --parsable --job-name="$name" --output="$OUTPUT/logs/%x-%j.out"
        ${before:+--dependency="afterok$before"} --kill-on-invalid-dep=yes "${@:5}" "slurm/$4.sh")
    jobs[$name]=
    if [ -e "$box/manifest.json" ]; then
        printf '%-12s %-10s %s\n' "$name" complete "$box"
    elif [ -n "$dry" ]; then
        jobs[$name]="<$name>"
        echo "${command[*]}"
    else
        job=$("${command[@]}")
        jobs[$name]=${job%%;*}
        printf '%-12s %-10s %s\n' "$name" "${jobs[$name]}" "${before:+after${before//:/ }}"
    fi
}

# index NAME BOX "NAMES OF JOBS BEFORE": build the indexes of the run NAME on a machine without GPUs.
index() {
    # shellcheck disable=SC2086 # a list of words
    RUN_NODES=$NODES RUN_GPUS_PER_NODE=$GPUS_PER_NODE \
        submit "$1_indexes" "$2" "$3" build_indexes $CPU_FLAGS
}

# shellcheck disable=SC2086 # the flags are lists of words
{
    [ -z "$INPUT" ] || submit preprocess corpus "" preprocess $CPU_FLAGS
    submit embed embeddings "preprocess" embed --nodes="$NODES" $gpus
    submit mine pairs "embed" mine_pairs --nodes="$NODES" $gpus
    ARM=repetition index repetition repetition "preprocess"
    ARM=repetition submit repetition repetition "repetition_indexes" "pretrain_$size" --nodes="$NODES" $gpus
    ARM=tune index tune synthesizer "mine"
    submit tune synthesizer "tune_indexes repetition" tune_synthesizer --nodes="$NODES" $gpus
    submit synthesize filtered "tune" synthesize --array="1-$PARTS" $gpus
    submit filter filtered "synthesize" filter $CPU_FLAGS
    submit audit audit "filter" audit $GPU_FLAGS
    ARM=sbp index sbp sbp "filter"
    ARM=sbp submit sbp sbp "sbp_indexes" "pretrain_$size" --nodes="$NODES" $gpus
    submit evaluate report "audit sbp" evaluate $GPU_FLAGS
}
