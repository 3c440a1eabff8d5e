#!/bin/bash

# Written by grpo-hpc when the run directory was made. `grpo-hpc resume` starts it as it is; with --profile, or when other
# nodes are asked for, it is written anew. Without an argument it supervises one attempt; with the name of a step it runs
# that step alone.
set -euo pipefail
run_dir=/runs/run

threads() { local share=$(( $1 > $2 ? $1 / $2 : 1 )); echo $(( share < $3 ? share : $3 )); }

environment() {
  export PYTHONUNBUFFERED=1
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(threads $(nproc) 4 8)}"
  export CUDA_DEVICE_MAX_CONNECTIONS=1
  export TMPDIR=/scratch
  export NCCL_DEBUG=WARN
}

check() {
  exec bash -c '/env/bin/python -m grpo_hpc.jobs.checks.check_node "$0" && exec /env/bin/python -m torch.distributed.run --standalone --nproc-per-node=4 -m grpo_hpc.jobs.checks.check_rank "$0"' /runs/run
}

train() {
  exec bash -c 'exec /env/bin/python -m torch.distributed.run --standalone --nproc-per-node=4 -m grpo_hpc.train "$0"' /runs/run
}

case "${1-}" in
  "") exec /env/bin/python -m grpo_hpc.jobs.supervise "$run_dir" ;;
  check | train) environment; "$1" ;;
  environment) environment; env --null ;;
  *) echo "usage: job.sh [check | train | environment]" >&2; exit 2 ;;
esac
