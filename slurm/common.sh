# shellcheck shell=bash
# What the scripts of this directory share. They source it in the root of the repository, which is
# where they are submitted: a job's $0 is a copy in Slurm's spool, SLURM_SUBMIT_DIR is not.

set -euo pipefail

stop() {
    echo "error: $*" >&2
    exit 2
}

# need VARIABLE MEANING: stop unless the user has set it.
need() {
    [ -n "${!1:-}" ] || stop "$1 is not set: $2"
}

# Settings

# shellcheck source=slurm/site.env.example
[ ! -f slurm/site.env ] || source slurm/site.env
: "${GPU_FLAGS=}" "${CPU_FLAGS=}" "${GPU=}" "${PRECISION=}" "${SHARE=}" "${MODULES=}" "${MOUNTS=}"
: "${PYTHON=.venv/bin/python}" "${CONTAINER=}" "${CONTAINER_RUNTIME=pyxis}"
: "${NETWORK_INTERFACE=}" "${MPI=mpiexec}" "${RECIPE=${SIZE:-3b}_${SCALE:-200b}}"

need OUTPUT "the directory of this run's boxes, on a file system that all nodes see"
mkdir -p "$OUTPUT/logs"
OUTPUT=$(cd "$OUTPUT" && pwd)
: "${CORPUS=$OUTPUT/corpus/real}"
read -ra corpus <<<"$CORPUS"
: "${HELDOUT=${corpus[0]}-heldout}" "${TOKENIZER=$(dirname "${corpus[0]}")/tokenizer}"

# recipe STAGE: set `arguments` to what the recipe gives that stage.
recipe() {
    local words changes
    read -ra changes <<<"${SET:-}"
    words=$(once "$PYTHON" -m megatron_sbp.recipes show "$RECIPE" --stage "$1" \
        --nodes "${RUN_NODES:-$SLURM_JOB_NUM_NODES}" \
        --gpus-per-node "${RUN_GPUS_PER_NODE:-$SLURM_NTASKS_PER_NODE}" \
        ${ARM:+--arm "$ARM"} ${GPU:+--gpu "$GPU"} ${PRECISION:+--precision "$PRECISION"} \
        ${SHARE:+--share "$SHARE"} ${changes:+--set "${changes[@]}"}) || exit
    arguments=()
    [ -z "$words" ] || mapfile -t arguments <<<"$words"
}

# Running

# A job's environment reaches its steps even where sbatch was told to export none of its own.
export SLURM_EXPORT_ENV=ALL
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
[ "$GPU" != cpu ] || export CUDA_VISIBLE_DEVICES=
if [ -n "$NETWORK_INTERFACE" ]; then
    export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE
fi
if [ -n "$MODULES" ]; then
    # shellcheck disable=SC2086 # a list of words
    module load $MODULES
fi

pyxis=() apptainer=()
case ${CONTAINER:+$CONTAINER_RUNTIME} in
    "") ;;
    pyxis) pyxis=(--container-image="$CONTAINER" --container-workdir="$PWD"
        ${MOUNTS:+--container-mounts="$MOUNTS"}) ;;
    apptainer) apptainer=(apptainer exec --nv --pwd "$PWD" ${MOUNTS:+--bind "$MOUNTS"} "$CONTAINER") ;;
    *) stop "CONTAINER_RUNTIME=$CONTAINER_RUNTIME: give pyxis or apptainer" ;;
esac

# once COMMAND...: run it in one task.
once() {
    step none --nodes=1 --ntasks=1 --ntasks-per-node=1 -- "$@"
}

# ranks COMMAND...: run it in every task of the job, as ranks of MPI.
ranks() {
    if [ "$MPI" = mpiexec ]; then
        attend "$(dirname "$PYTHON")/mpiexec" -n "$SLURM_NTASKS" "${apptainer[@]}" "$@"
    else
        step "$MPI" --label -- "$@"
    fi
}

# torch COMMAND...: run it in every task of the job, as ranks of torch.distributed.
torch() {
    local hosts
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export MASTER_ADDR=${hosts%%$'\n'*}
    # Below the ports that a kernel hands out; every element of an array has a job number of its own.
    export MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
    step none --label -- "$@"
}

# step MPI FLAGS... -- COMMAND...: run a step of the job. Ranks are known only inside of the task.
step() {
    local flags=(--mpi="$1")
    shift
    while [ "$1" != -- ]; do
        flags+=("$1")
        shift
    done
    shift
    # shellcheck disable=SC2016 # expands in the task
    attend srun "${flags[@]}" --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        "${pyxis[@]}" bash -c \
        'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' \
        task "${apptainer[@]}" "$@"
}

# Surviving

# Slurm signals this shell before the limit (--signal=B:USR1@...); the ranks then get USR1, as they
# get TERM from Slurm itself when a job is preempted.
signalled=
interrupted=
pass_on() {
    echo "$(date '+%F %T') $1: telling the ranks to end"
    signalled=$1 interrupted=yes
    scancel --signal=USR1 "$SLURM_JOB_ID"
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

# attend COMMAND...: run it in the background, as bash runs no trap while a command is in front.
attend() {
    local status
    "$@" &
    while true; do
        interrupted=
        wait $! && status=0 || status=$?
        [ -n "$interrupted" ] || return "$status"
    done
}

# begin BOX TRACE: end at once if the box is there. TRACE tells whether an attempt comes further than
# the one before: the workspace of a stage, or the file with the number of a run's last checkpoint.
begin() {
    box=$1 trace=$2 began=$OUTPUT/logs/.began-$SLURM_JOB_ID
    if [ -e "$box/manifest.json" ]; then
        echo "$box is complete"
        exit 0
    fi
    echo "$(date '+%F %T') job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1))," \
        "on $SLURM_JOB_NODELIST: $box"
    touch "$began"
}

# conclude STATUS: end the job with it, or go on in a requeued one.
conclude() {
    local status=$1
    if [ "$status" = 0 ] && [ -e "$box/manifest.json" ]; then
        rm -f "$began"
        exit 0
    fi
    if ! nodes_answer; then
        requeue "a node does not answer"
    fi
    # A crash is worth another attempt only where a new checkpoint shows that it will not come again
    # at the same place; a stage writes into its workspace whatever becomes of it.
    if came_further && { [ -n "$signalled" ] || [ -f "$trace" ]; }; then
        requeue "it ended with status $status after ${signalled:-no signal}, and had come further"
    fi
    rm -f "$began"
    echo "error: $box: ended with status $status and came no further than it was" >&2
    exit $((status ? status : 1))
}

came_further() {
    [ -n "$(find "$trace" -type f -newer "$began" -print -quit 2>/dev/null)" ]
}

# A rank that loses its peer fails at once, long before Slurm gives up a node.
nodes_answer() {
    timeout 60 srun --mpi=none --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task=1 true 2>/dev/null
}

# It ends this script, so it is the last thing to do.
requeue() {
    echo "$(date '+%F %T') requeued: $1"
    scontrol requeue "$SLURM_JOB_ID"
    exit 1
}

# Stages

# stage BOX HOW TOOL ARGUMENTS...: make a box with one of tools/; HOW is once or ranks.
stage() {
    local how=$2 tool=$3 status=0
    begin "$1" "$1.partial"
    shift 3
    "$how" "$PYTHON" "tools/$tool.py" "$@" "${arguments[@]}" || status=$?
    conclude "$status"
}

# part BOX HOW TOOL ARGUMENTS...: make one of several boxes of a job, which ends only if that fails.
part() {
    local how=$2 tool=$3 status=0
    [ ! -e "$1/manifest.json" ] || return 0
    begin "$1" "$1.partial"
    shift 3
    "$how" "$PYTHON" "tools/$tool.py" "$@" "${arguments[@]}" || status=$?
    [ "$status" = 0 ] || conclude "$status"
}

# train BOX ARGUMENTS...: train with Megatron. On TERM all ranks agree on a step, save and end with 0.
# With INDEXES_ONLY build what the run would build at its start, and end.
train() {
    local status=0 run=$1
    shift
    local line=("$@" --valid-data-path "$HELDOUT" --tokenizer-model "$TOKENIZER"
        --data-cache-path "$OUTPUT/index-cache" --save "$run" --load "$run" --exit-signal-handler
        "${arguments[@]}")
    if [ -n "${INDEXES_ONLY:-}" ]; then
        once "$PYTHON" tools/build_indexes.py "${line[@]}"
        exit
    fi
    begin "$run" "$run/latest_checkpointed_iteration.txt"
    export CUDA_DEVICE_MAX_CONNECTIONS=1
    torch "$PYTHON" -m megatron_sbp.pretrain "${line[@]}" || status=$?
    conclude "$status"
}

# tune: train the repetition baseline on the pairs.
tune() {
    recipe tune
    train "$OUTPUT/synthesizer" --sbp-objective synthesis --sbp-pairs "$OUTPUT/pairs" \
        --pretrained-checkpoint "$OUTPUT/repetition" --train-data-path "${corpus[@]}"
}

# pretrain: train one of the arms that are compared; ARM says which.
pretrain() {
    local data=("${corpus[@]}") synthetic
    : "${ARM=sbp}"
    case $ARM in
        repetition) ;;
        sbp)
            read -ra synthetic <<<"${SYNTHETIC:-$OUTPUT/filtered/synthetic}"
            data+=(--sbp-synthetic-data "${synthetic[@]}")
            ;;
        oracle)
            need ORACLE "prefixes of so many real documents that none is repeated"
            read -ra data <<<"$ORACLE"
            ;;
        *) stop "ARM=$ARM: give repetition, sbp or oracle" ;;
    esac
    recipe pretrain
    train "$OUTPUT/$ARM" --train-data-path "${data[@]}"
}
