#!/bin/bash
# A run on a SLURM allocation, of one node or many (docs/cluster.md):
#
#   sbatch --nodes=4 --gpus-per-node=8 --exclusive scripts/slurm.sh experiment=rlhf_workflow run_dir=/shared/runs/x
#
# Submitted from the project's folder. Starts Ray on every node and, on the first, the command itself:
# `python -m rlhf.iterate … compute=ray compute.num_nodes=4`. Before the time limit (or a pre-emption that warns)
# the driver is asked to stop, the job is requeued, and its next start goes on where this one was. The exit code
# is the driver's. Everything printed is in slurm-JOB.log, what Ray prints on each node in slurm-JOB/.
#
# Environment, all optional:
#   RLHF_PYTHON          the interpreter, at the same place on every node (.venv/bin/python, else python)
#   RLHF_NODE_SECONDS    how long to wait until every node has joined (300)
#   RLHF_MAX_REQUEUES    how often the job may start again (50)
#   RLHF_HEAD_ADDRESS    the first node's IP address on the network that the nodes talk over
#   RLHF_RAY_TMP         where Ray keeps its sockets and logs on each node; a short path on a local disk (/tmp)
#
#SBATCH --job-name=rlhf
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

say() {
    printf 'slurm.sh: %s\n' "$*"
}

fail() { # fail CODE TEXT…
    local code=$1
    shift
    say "error: $*" >&2
    exit "$code"
}

# --- on each node, within srun -------------------------------------------------------------------------------

# The first of ten ports in a row that nobody listens on, below those that the kernel gives away by itself.
# Jobs have numbers in a row and begin 31 blocks apart, so that two of them on one node rarely look at the same
# block, and the nodes of one job, which may be one machine in a test, never do.
free_ports() { # free_ports PYTHON JOB NODE_INDEX
    "$1" - "$2" "$3" <<'PYTHON'
import contextlib
import socket
import sys

FIRST, SIZE, BLOCKS = 20_000, 10, 1_200

job, node = (int(word) for word in sys.argv[1:])
for attempt in range(BLOCKS):
    start = FIRST + SIZE * ((31 * job + node + attempt) % BLOCKS)
    with contextlib.ExitStack() as held, contextlib.suppress(OSError):
        for port in range(start, start + SIZE):
            probe = held.enter_context(socket.socket())
            probe.bind(("", port))
        print(start)
        sys.exit()
sys.exit(f"all ports from {FIRST} to {FIRST + SIZE * BLOCKS} are taken")
PYTHON
}

# A signal may reach all processes of a step, as what srun passes on does: a `sleep` that it ends is no error.
nap() { # nap SECONDS
    sleep "$1" || true
}

# Waits for a child as long as it lives, and is not ended by signals: of two that come at once while bash 5.2 is in
# `wait`, the second ends the script in the middle of what the first began.
watch_child() { # watch_child PID [COMMAND to call now and then]
    while kill -0 "$1" 2>/dev/null; do
        "${2:-true}"
        nap 0.2
    done
}

# Ray on one node, until it is told to stop: its own exit code, 0 where we stopped it.
# shellcheck disable=SC2329  # start_node sends it to the node
run_node() { # run_node NODE PYTHON TEMP LOGS FIRST_PORT PLACE…
    local node=$1 python=$2 temp=$3 logs=$4 port=$5 is_told="" ray code=0
    shift 5
    trap 'is_told=yes; kill -TERM "${ray:-}" 2>/dev/null || true' TERM INT
    "$python" -m ray.scripts.scripts start --block --node-name="$node" "$@" \
        --node-manager-port=$((port + 1)) --object-manager-port=$((port + 2)) \
        --runtime-env-agent-port=$((port + 3)) --metrics-export-port=$((port + 4)) \
        --dashboard-agent-listen-port=$((port + 5)) --dashboard-agent-grpc-port=$((port + 6)) \
        --min-worker-port=0 --max-worker-port=0 \
        --num-cpus="${SLURM_CPUS_ON_NODE:-1}" --object-store-memory=100000000 \
        --include-log-monitor=false --disable-usage-stats </dev/null &
    ray=$!
    watch_child "$ray"
    wait "$ray" || code=$?
    if [[ -n $is_told ]]; then
        code=0
    elif [[ -d $temp/session_latest/logs ]]; then
        cp -r "$temp/session_latest/logs/." "$logs/ray_$node" || true
    fi
    rm -rf "$temp"
    return "$code"
}

# --- on the first node, in the batch script ------------------------------------------------------------------

# The address by which other nodes reach this one: what its name stands for, unless that is loopback.
own_address() {
    "$python" - <<'PYTHON'
import os
import socket

import ray

try:
    found = socket.gethostbyname(os.environ.get("SLURMD_NODENAME") or socket.gethostname())
except OSError:
    found = "127.0.0.1"
print(ray.util.get_node_ip_address() if found.startswith("127.") else found)
PYTHON
}

# Writes the names of the nodes that have joined to a file, until there are enough.
watch_nodes() { # watch_nodes FILE NUMBER
    exec "$python" - "$@" <<'PYTHON'
import os
import sys
import time

import ray

file, number = sys.argv[1], int(sys.argv[2])
while not ray.is_initialized():
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    # Whatever it is: the head is not up yet, and who waits for us has a deadline.
    except Exception as error:
        print(f"not yet: {type(error).__name__}: {error}", flush=True)
        time.sleep(1)
names = []
while len(names) < number:
    names = sorted({node["NodeName"] for node in ray.nodes() if node["Alive"]})
    with open(f"{file}.new", "w", encoding="utf-8") as new:
        new.write("\n".join(names) + "\n")
    os.replace(f"{file}.new", file)
    time.sleep(0.5)
PYTHON
}

# Starts Ray on one node of the allocation, in a job step of its own: one node's end is not the others'.
start_node() { # start_node INDEX PORT PLACE…
    local index=$1 port=$2 node=${nodes[$1]}
    shift 2
    local script
    script="set -euo pipefail; $(declare -f free_ports nap watch_child run_node)"
    if [[ -z $port ]]; then
        script+="; port=\$(free_ports \"\$2\" $SLURM_JOB_ID $index)"
    else
        script+="; port=$port"
    fi
    script+="; run_node \"\${@:1:4}\" \"\$port\" \"\${@:5}\""
    # --cpu-bind: a task would be bound to one core. The step is told nothing of what is typed to the script.
    srun --nodes=1 --ntasks=1 --nodelist="$node" --cpu-bind=none --export=ALL --input=none \
        bash -c "$script" ray_node "$node" "$python" "$temp" "$logs" "$@" >"$logs/ray_$node.log" 2>&1 &
    steps[index]=$!
}

# Ends with an error where Ray has ended on a node by itself.
check_steps() {
    local index node
    for index in "${!steps[@]}"; do
        node=${nodes[$index]}
        if ! kill -0 "${steps[$index]}" 2>/dev/null; then
            tail -n 20 "$logs/ray_$node.log" >&2
            fail 1 "Ray has ended on $node by itself; the lines above are the last of $logs/ray_$node.log"
        fi
    done
}

# Waits for every node; ends with an error that names those that have not come.
wait_for_nodes() {
    local deadline=$((SECONDS + ${RLHF_NODE_SECONDS:-300})) joined="$logs/joined" node missing
    rm -f "$joined"
    watch_nodes "$joined" "${#nodes[@]}" >"$logs/watch.log" 2>&1 &
    watcher=$!
    while kill -0 "$watcher" 2>/dev/null && [[ -z $stopped_by ]]; do
        check_steps
        if ((SECONDS >= deadline)); then
            missing=""
            for node in "${nodes[@]}"; do
                grep -qxF -- "$node" "$joined" 2>/dev/null || missing+=" $node"
            done
            fail 1 "after ${RLHF_NODE_SECONDS:-300} s these of ${#nodes[@]} nodes have not joined Ray:$missing." \
                "See $logs/ray_NODE.log (and watch.log), raise RLHF_NODE_SECONDS where nodes are slow, or leave" \
                "them out: sbatch --exclude=NODE"
        fi
        nap 0.2
    done
    if [[ -z $stopped_by ]]; then
        wait "$watcher" || fail 1 "the nodes cannot be watched: see $logs/watch.log"
    fi
}

start_ray() {
    local index port address
    port=$(free_ports "$python" "$SLURM_JOB_ID" 0)
    address=${RLHF_HEAD_ADDRESS:-$(own_address)}
    export RAY_ADDRESS="$address:$port"
    # Whoever reaches an open Ray runs code as you: other jobs' users on these nodes do.
    RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=5
    # Where memory runs short Ray would end the supervisor, the only process that it knows, for what a worker holds.
    export RAY_memory_monitor_refresh_ms=0
    say "Ray on ${#nodes[@]} nodes, the head on ${nodes[0]} at $RAY_ADDRESS"
    start_node 0 "$port" --head --port="$port" --node-ip-address="$address" --temp-dir="$temp" \
        --ray-client-server-port=$((port + 7)) --dashboard-port=$((port + 8)) --include-dashboard=false
    for ((index = 1; index < ${#nodes[@]}; index++)); do
        start_node "$index" "" --address="$RAY_ADDRESS"
    done
    wait_for_nodes
}

# Ends every step, and waits until it is gone; what does not end is killed. SLURM ends what a step leaves.
stop_ray() {
    local step deadline=$((SECONDS + 40))
    # Who ends may not be asked again.
    trap '' USR1 TERM INT
    kill -TERM ${watcher:+"$watcher"} "${steps[@]}" 2>/dev/null || true
    for step in ${watcher:+"$watcher"} "${steps[@]}"; do
        while kill -0 "$step" 2>/dev/null && ((SECONDS < deadline)); do
            nap 0.1
        done
        kill -KILL "$step" 2>/dev/null || true
    done
}

# Passes a stop on to the driver, once: a second time would hurry it.
# shellcheck disable=SC2329  # watch_child calls it
tell_driver() {
    if [[ -n $stopped_by && -z $is_told ]]; then
        is_told=yes
        say "SIG$stopped_by: the driver is asked to stop"
        kill -TERM "$driver" 2>/dev/null || true
    fi
}

# Runs the command to its end; leaves its exit code in driver_code.
run_driver() {
    local take_over=() driver is_told=""
    # What an earlier start of this job has left is of a driver that died with its node: SLURM has ended the job
    # there before it began it again.
    if [[ -s $logs/driver && ${SLURM_RESTART_COUNT:-0} -gt 0 ]]; then
        take_over=("take_over=$(<"$logs/driver")")
        say "an earlier start was ended hard: ${take_over[0]}"
    fi
    "$python" -m rlhf.iterate "$@" compute=ray "compute.num_nodes=${#nodes[@]}" "${take_over[@]}" &
    driver=$!
    # Not $HOSTNAME: sbatch may have brought that of the login node.
    printf '%s:%s\n' "$(uname -n)" "$driver" >"$logs/driver"
    watch_child "$driver" tell_driver
    driver_code=0
    wait "$driver" || driver_code=$?
    rm -f "$logs/driver"
}

# Whether the job is to start again: it was asked to stop before it was done, and not by its user.
is_unfinished() {
    [[ -n $stopped_by && $driver_code -ne 0 && $driver_code -ne 2 ]] || return 1
    case $stopped_by in
    USR1) return 0 ;;
    # A pre-emption's grace: the job still runs. After scancel it does not.
    TERM) [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING* ]] ;;
    *) return 1 ;;
    esac
}

requeue() {
    local restarts=${SLURM_RESTART_COUNT:-0} limit=${RLHF_MAX_REQUEUES:-50}
    if ((restarts >= limit)); then
        say "not requeued: the job was started again $restarts times, and RLHF_MAX_REQUEUES=$limit allows no more." \
            "The same sbatch command goes on from here."
        return
    fi
    say "requeued ($((restarts + 1)) of at most $limit times): the next start goes on from here"
    # Last of all, since SLURM ends this script for it.
    scontrol requeue "$SLURM_JOB_ID" || say "error: the requeue failed; the same sbatch command goes on from here" >&2
}

main() {
    [[ -n ${SLURM_JOB_ID:-} ]] || fail 2 "this is a job: sbatch --nodes=2 scripts/slurm.sh experiment=… run_dir=…"
    cd "${SLURM_SUBMIT_DIR:-.}"
    python=${RLHF_PYTHON:-.venv/bin/python}
    [[ -n ${RLHF_PYTHON:-} || -x $python ]] || python=python
    python=$(command -v "$python") || fail 2 "no Python: submit from the project's folder, or set RLHF_PYTHON"
    "$python" -c 'import ray' || fail 2 "$python has no Ray; docs/cluster.md says how it is installed"
    [[ $python == /* ]] || python=$PWD/$python
    logs=$PWD/slurm-$SLURM_JOB_ID
    temp=${RLHF_RAY_TMP:-/tmp}/ray_$SLURM_JOB_ID
    # Of a socket's path, 107 characters at most, Ray's own part takes up to 70.
    ((${#temp} <= 37)) || fail 2 "RLHF_RAY_TMP=${RLHF_RAY_TMP:-} is too long for Ray's sockets: 20 characters at most"
    mkdir -p "$logs"
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    ((${#nodes[@]} > 0)) || fail 1 "scontrol names no node of $SLURM_JOB_NODELIST"

    steps=() watcher="" driver_code=143 stopped_by=""
    # The first that comes decides. No more than this is done in a trap: another one may come in the middle of it.
    trap 'stopped_by=${stopped_by:-USR1}' USR1
    trap 'stopped_by=${stopped_by:-TERM}' TERM
    trap 'stopped_by=${stopped_by:-INT}' INT
    trap stop_ray EXIT
    start_ray
    if [[ -z $stopped_by ]]; then
        run_driver "$@"
    fi
    stop_ray
    if is_unfinished; then
        requeue
    fi
    exit "$driver_code"
}

main "$@"
