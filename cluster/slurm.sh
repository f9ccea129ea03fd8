#!/usr/bin/env bash
# One sweep as a Slurm job: a Ray cluster on the job's nodes, and the sweep on the first of them. From the folder that holds
# the sweep file:
#
#     CHECKOUT/cluster/fill.sh CHECKOUT/cluster/slurm.sh > slurm-filled.sh
#     sbatch slurm-filled.sh sweeps/gsm8k.yaml --set output=/shared/runs --set 'workers.resources={CPU: 1, GPU: 1}'
#
# Three minutes before the time is up the sweep saves; the job is queued again and goes on. scancel --signal=INT --batch JOB
# does the same at once; plain scancel ends it within Slurm's own KillWait, from which --resume goes on as well.
#SBATCH --job-name=raysft
#SBATCH --partition=${SLURM_PARTITION}
#SBATCH --account=${SLURM_ACCOUNT}
#SBATCH --time=${SLURM_TIME}
#SBATCH --nodes=${WORKERS}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=${WORKER_CPUS}
#SBATCH --gpus-per-node=${WORKER_GPUS}
#SBATCH --exclusive
#SBATCH --signal=B:INT@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=raysft-%j.log
set -euo pipefail

sweep=0        # process of the sweep, once it runs
stopping=0     # whether it was told to save and end
out_of_time=0  # whether Slurm's warning came
stays=0        # whether somebody wants it stopped for good
restarts=$(printenv SLURM_RESTART_COUNT || echo 0)

# A script's background jobs ignore SIGINT; raysft takes SIGTERM for the same, and a second one cuts the saving short.
# shellcheck disable=SC2329 # the traps call it
stop() {
    if [[ $1 == INT ]]; then out_of_time=1; else stays=1; fi
    if ((!sweep)); then exit 1; fi
    if ((!stopping)); then kill -TERM "$sweep" 2> /dev/null || true; fi
    stopping=1
}
trap 'stop INT' INT
trap 'stop TERM' TERM

# wait returns when a signal comes, too: then the sweep is still saving.
exit_code_of() {
    local code=0
    wait "$1" || code=$?
    while kill -0 "$1" 2> /dev/null; do
        code=0
        wait "$1" || code=$?
    done
    return "$code"
}

# shellcheck source=/dev/null
source "${SLURM_VENV}/bin/activate"
export HF_HOME="${SHARED}/huggingface" HF_TOKEN_PATH="$HOME/.cache/huggingface/token"
# Between the nodes: the same interface for NCCL and gloo, and a word from NCCL where it falls back.
export NCCL_SOCKET_IFNAME="${SLURM_INTERFACE}" GLOO_SOCKET_IFNAME="${SLURM_INTERFACE}" NCCL_DEBUG=WARN

# A token of this job alone, in the home folder that the nodes share.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/raysft-$SLURM_JOB_ID.token"
(umask 077 && mkdir -p "$HOME/.ray" && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
trap 'kill $(jobs -p) 2> /dev/null || true; rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_ip=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS="$head_ip:$port"
on_node=(srun --overlap --nodes=1 --ntasks=1 --cpus-per-task=${WORKER_CPUS} --gpus-per-node=${WORKER_GPUS})
resources=(--num-cpus=${WORKER_CPUS} --num-gpus=${WORKER_GPUS} --disable-usage-stats --block)

# Its folder is short and the node's own: sockets lie there, whose paths may have 107 characters.
"${on_node[@]}" --nodelist="${nodes[0]}" ray start --head --node-ip-address="$head_ip" --port="$port" \
    --dashboard-host=127.0.0.1 --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${resources[@]}" &
until ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1; do
    jobs -r | grep -q . || { echo "The head has ended." >&2 && exit 1; }
    sleep 2
done
for node in "${nodes[@]:1}"; do
    "${on_node[@]}" --nodelist="$node" ray start --address="$RAY_ADDRESS" "${resources[@]}" &
done

# --resume begins where nothing is there, and goes on where something is.
raysft sweep "$@" --resume --set workers.max_concurrent=${GROUPS_AT_ONCE} --set workers.wait_minutes=${WAIT_MINUTES} &
sweep=$!
code=0
exit_code_of "$sweep" || code=$?
if ((out_of_time && !stays && code && restarts < ${SLURM_RESTARTS})); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
