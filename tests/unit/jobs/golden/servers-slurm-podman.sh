#!/bin/bash
#SBATCH --job-name=run
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append

# Written by grpo-hpc when the run directory was made. `grpo-hpc resume` starts it as it is; with --profile, or when other
# nodes are asked for, it is written anew. Without an argument it supervises one attempt; with the name of a step it runs
# that step alone.
set -euo pipefail
run_dir=/runs/run
inside='
export HOME="$GRPO_HPC_HOME" USER="${USER:-user}"
export LOGNAME="${LOGNAME:-$USER}" TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$HOME/.cache/inductor}"
mkdir -p -m 700 "$HOME"
[ -O "$HOME" ] || { echo "$HOME, the home folder in the container, is not this user'"'"'s own" >&2; exit 1; }
'

threads() { local share=$(( $1 > $2 ? $1 / $2 : 1 )); echo $(( share < $3 ? share : $3 )); }

environment() {
  export PYTHONUNBUFFERED=1
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(threads $(nproc) 4 8)}"
  export CUDA_DEVICE_MAX_CONNECTIONS=1
  export HF_HUB_OFFLINE=1
  export TRANSFORMERS_OFFLINE=1
  export PYTHONNOUSERSITE=1
  export GRPO_HPC_HOME=/runs/run/.cache/home
}

check() {
  exec srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --gpus-per-node=4 --kill-on-bad-exit=1 --overlap --mpi=none --export=ALL \
    podman run --rm --init --network=host --ipc=host --label "grpo-hpc=${SLURM_JOB_ID:-}" --device nvidia.com/gpu=all --ulimit memlock=-1 --env MASTER_ADDR --env MASTER_PORT --env GRPO_HPC_ATTEMPT --env CUDA_VISIBLE_DEVICES --env SLURM_JOB_ID --env SLURM_NODEID --env SLURM_PROCID --env SLURMD_NODENAME --env PYTHONUNBUFFERED --env OMP_NUM_THREADS --env CUDA_DEVICE_MAX_CONNECTIONS --env HF_HUB_OFFLINE --env TRANSFORMERS_OFFLINE --env PYTHONNOUSERSITE --env GRPO_HPC_HOME --mount 'type=bind,"source=/runs/run","destination=/runs/run"' --mount 'type=bind,"source=/models/m","destination=/models/m"' --mount 'type=bind,"source=/data/t.jsonl","destination=/data/t.jsonl"' --workdir /runs/run --entrypoint '' localhost/grpo-hpc:gpu \
    bash -c "$inside"'trap "" TERM USR2; shopt -s execfail; python3 -m grpo_hpc.jobs.checks.check_node "$0" && exec python3 -m torch.distributed.run --nnodes=4 --node-rank="$SLURM_NODEID" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" --signals-to-handle=SIGINT --nproc-per-node=4 -m grpo_hpc.jobs.checks.check_rank "$0"; code=$?; sleep 1; exit $code' /runs/run
}

train() {
  exec srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --relative=0 --gpus-per-node=4 --kill-on-bad-exit=1 --overlap --mpi=none --export=ALL \
    podman run --rm --init --network=host --ipc=host --label "grpo-hpc=${SLURM_JOB_ID:-}" --device nvidia.com/gpu=all --ulimit memlock=-1 --env MASTER_ADDR --env MASTER_PORT --env GRPO_HPC_ATTEMPT --env CUDA_VISIBLE_DEVICES --env SLURM_JOB_ID --env SLURM_NODEID --env SLURM_PROCID --env SLURMD_NODENAME --env PYTHONUNBUFFERED --env OMP_NUM_THREADS --env CUDA_DEVICE_MAX_CONNECTIONS --env HF_HUB_OFFLINE --env TRANSFORMERS_OFFLINE --env PYTHONNOUSERSITE --env GRPO_HPC_HOME --mount 'type=bind,"source=/runs/run","destination=/runs/run"' --mount 'type=bind,"source=/models/m","destination=/models/m"' --mount 'type=bind,"source=/data/t.jsonl","destination=/data/t.jsonl"' --workdir /runs/run --entrypoint '' localhost/grpo-hpc:gpu \
    bash -c "$inside"'trap '"'"'[ -e "$0/stop" ] || echo signalled > "$0/stop" || rm -f "$0/stop"'"'"' TERM USR2; (trap "" TERM USR2; exec python3 -m torch.distributed.run --nnodes=2 --node-rank="$SLURM_NODEID" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" --signals-to-handle=SIGINT --nproc-per-node=4 -m grpo_hpc.train "$0") & while kill -0 $! 2>/dev/null; do wait $!; done; wait $!; code=$?; [ $code = 0 ] || sleep 1; exit $code' /runs/run
}

serve() {
  exec srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --relative=2 --gpus-per-node=4 --kill-on-bad-exit=1 --overlap --mpi=none --export=ALL \
    podman run --rm --init --network=host --ipc=host --label "grpo-hpc=${SLURM_JOB_ID:-}" --device nvidia.com/gpu=all --ulimit memlock=-1 --env MASTER_ADDR --env MASTER_PORT --env GRPO_HPC_ATTEMPT --env CUDA_VISIBLE_DEVICES --env SLURM_JOB_ID --env SLURM_NODEID --env SLURM_PROCID --env SLURMD_NODENAME --env PYTHONUNBUFFERED --env OMP_NUM_THREADS --env CUDA_DEVICE_MAX_CONNECTIONS --env HF_HUB_OFFLINE --env TRANSFORMERS_OFFLINE --env PYTHONNOUSERSITE --env GRPO_HPC_HOME --mount 'type=bind,"source=/runs/run","destination=/runs/run"' --mount 'type=bind,"source=/models/m","destination=/models/m"' --mount 'type=bind,"source=/data/t.jsonl","destination=/data/t.jsonl"' --workdir /runs/run --entrypoint '' localhost/grpo-hpc:gpu \
    bash -c "$inside"'trap "" TERM USR2; shopt -s execfail; exec python3 -m grpo_hpc.jobs.serving.node_servers -m grpo_hpc.rollout.server "$0"; code=$?; sleep 1; exit $code' /runs/run
}

clean() {
  exec srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --overlap --mpi=none --export=ALL \
    bash -c 'podman ps --quiet --filter label="grpo-hpc=${SLURM_JOB_ID:-}" | xargs --no-run-if-empty podman rm --force --time=0'
}

case "${1-}" in
  "") exec /env/bin/python -m grpo_hpc.jobs.supervise "$run_dir" ;;
  check | train | serve | clean) environment; "$1" ;;
  environment) environment; env --null ;;
  *) echo "usage: job.sh [check | train | serve | clean | environment]" >&2; exit 2 ;;
esac
