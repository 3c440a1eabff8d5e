#!/bin/bash

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
  export TMPDIR=/scratch
  export NCCL_DEBUG=WARN
  export PYTHONNOUSERSITE=1
  export GRPO_HPC_HOME=/scratch/grpo-hpc-"$UID"
}

check() {
  exec docker run --rm --init --network=host --ipc=host --label "grpo-hpc=${SLURM_JOB_ID:-}" --user "$(id -u):$(id -g)" --gpus all --ulimit memlock=-1 --env MASTER_ADDR --env MASTER_PORT --env GRPO_HPC_ATTEMPT --env CUDA_VISIBLE_DEVICES --env SLURM_JOB_ID --env SLURM_NODEID --env SLURM_PROCID --env SLURMD_NODENAME --env PYTHONUNBUFFERED --env OMP_NUM_THREADS --env CUDA_DEVICE_MAX_CONNECTIONS --env TMPDIR --env NCCL_DEBUG --env PYTHONNOUSERSITE --env GRPO_HPC_HOME --mount 'type=bind,"source=/runs/run","destination=/runs/run"' --mount 'type=bind,"source=/models/m","destination=/models/m"' --mount 'type=bind,"source=/data/t.jsonl","destination=/data/t.jsonl"' --mount 'type=bind,"source=/scratch","destination=/scratch"' --workdir /runs/run --entrypoint '' localhost/grpo-hpc:gpu \
    bash -c "$inside"'python3 -m grpo_hpc.jobs.checks.check_node "$0" && exec python3 -m torch.distributed.run --standalone --nproc-per-node=4 -m grpo_hpc.jobs.checks.check_rank "$0"' /runs/run
}

train() {
  exec docker run --rm --init --network=host --ipc=host --label "grpo-hpc=${SLURM_JOB_ID:-}" --user "$(id -u):$(id -g)" --gpus all --ulimit memlock=-1 --env MASTER_ADDR --env MASTER_PORT --env GRPO_HPC_ATTEMPT --env CUDA_VISIBLE_DEVICES --env SLURM_JOB_ID --env SLURM_NODEID --env SLURM_PROCID --env SLURMD_NODENAME --env PYTHONUNBUFFERED --env OMP_NUM_THREADS --env CUDA_DEVICE_MAX_CONNECTIONS --env TMPDIR --env NCCL_DEBUG --env PYTHONNOUSERSITE --env GRPO_HPC_HOME --mount 'type=bind,"source=/runs/run","destination=/runs/run"' --mount 'type=bind,"source=/models/m","destination=/models/m"' --mount 'type=bind,"source=/data/t.jsonl","destination=/data/t.jsonl"' --mount 'type=bind,"source=/scratch","destination=/scratch"' --workdir /runs/run --entrypoint '' localhost/grpo-hpc:gpu \
    bash -c "$inside"'exec python3 -m torch.distributed.run --standalone --nproc-per-node=4 -m grpo_hpc.train "$0"' /runs/run
}

case "${1-}" in
  "") exec /env/bin/python -m grpo_hpc.jobs.supervise "$run_dir" ;;
  check | train) environment; "$1" ;;
  environment) environment; env --null ;;
  *) echo "usage: job.sh [check | train | environment]" >&2; exit 2 ;;
esac
