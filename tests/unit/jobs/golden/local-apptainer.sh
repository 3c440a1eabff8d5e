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
  unset PYTHONPATH PYTHONHOME PYTHONUSERBASE XDG_CACHE_HOME XDG_CONFIG_HOME HF_HOME HF_HUB_CACHE TORCH_HOME TORCH_EXTENSIONS_DIR TORCHINDUCTOR_CACHE_DIR TRITON_HOME TRITON_CACHE_DIR VLLM_CACHE_ROOT VLLM_CONFIG_ROOT CUDA_CACHE_PATH
  export PYTHONUNBUFFERED=1
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(threads $(nproc) 4 8)}"
  export CUDA_DEVICE_MAX_CONNECTIONS=1
  export TMPDIR=/scratch
  export NCCL_DEBUG=WARN
  export PYTHONNOUSERSITE=1
  export GRPO_HPC_HOME=/scratch/grpo-hpc-"$UID"
}

check() {
  exec apptainer exec --nv --mount 'type=bind,"source=/runs/run","destination=/runs/run"' --mount 'type=bind,"source=/models/m","destination=/models/m"' --mount 'type=bind,"source=/data/t.jsonl","destination=/data/t.jsonl"' --mount 'type=bind,"source=/scratch","destination=/scratch"' --pwd /runs/run /images/grpo.sif \
    bash -c "$inside"'python3 -m grpo_hpc.jobs.checks.check_node "$0" && exec python3 -m torch.distributed.run --standalone --nproc-per-node=4 -m grpo_hpc.jobs.checks.check_rank "$0"' /runs/run
}

train() {
  exec apptainer exec --nv --mount 'type=bind,"source=/runs/run","destination=/runs/run"' --mount 'type=bind,"source=/models/m","destination=/models/m"' --mount 'type=bind,"source=/data/t.jsonl","destination=/data/t.jsonl"' --mount 'type=bind,"source=/scratch","destination=/scratch"' --pwd /runs/run /images/grpo.sif \
    bash -c "$inside"'exec python3 -m torch.distributed.run --standalone --nproc-per-node=4 -m grpo_hpc.train "$0"' /runs/run
}

case "${1-}" in
  "") exec /env/bin/python -m grpo_hpc.jobs.supervise "$run_dir" ;;
  check | train) environment; "$1" ;;
  environment) environment; env --null ;;
  *) echo "usage: job.sh [check | train | environment]" >&2; exit 2 ;;
esac
