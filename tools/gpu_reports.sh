#!/usr/bin/env bash
# gpu_reports.sh OUT STAGE...: measure what docs/benchmarks/ says of GPUs, on a machine with two of them.
#
#   step      a whole step beside TRL and vLLM alone: equal lengths on one GPU, spread ones on the other
#   planner   the settings by which the planner may be corrected
#   frozen    the others; only after the planner was last changed
#   learning  learning curves beside TRL's, three seeds each; needs the model and data of `make demo`
#   tests     tests/gpu
#
# Stages run one after another; each leaves its results and a log in OUT, and one that fails does not stop the next.
# Run what is installed for PYTHON (default python3). LIMIT is the most seconds of a stage (default 3600).
set -uo pipefail
[ $# -ge 2 ] || { sed -n 2,11p "$0"; exit 2; }
cd "$(dirname "$0")/.."
out=$(realpath -m "$1") py=${PYTHON:-python3} limit=${LIMIT:-3600}
scratch=$(mktemp -d) && trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"; shift

one_step() {  # one_step GPU NAME OPTION...
  CUDA_VISIBLE_DEVICES=$1 timeout "$limit" "$py" tools/bench_step.py --model qwen3-4b --prompts 16 --generations 8 \
    --steps 5 --warmup 2 --memory-share 0.3 --set max_tokens_per_micro_batch=8192 --set sleep_level=2 --trl-micro 8 \
    --peer trl --folder "$scratch/$2" --out "$out/step_$2.json" "${@:3}" > "$out/step_$2.log" 2>&1
}

step() { one_step 0 equal --peer vllm & local equal=$!; one_step 1 spread --lengths spread; local code=$?; wait $equal && return $code; }
planner() { timeout "$limit" "$py" tools/plan_measured.py measure --gpus 0,1 --timeout 150 --folder "$scratch/planner" --out "$out/planner" "$@"; }
frozen() { planner --frozen; }
learning() { timeout "$limit" "$py" tools/bench_learning.py run --gpus 2 --memory-share 0.15 --runs "$scratch/learning" --out "$out/learning"; }
tests() { timeout "$limit" "$py" -m pytest -m gpu tests/gpu; }

for stage in "$@"; do
  case $stage in
    step|planner|frozen|learning|tests) ;;
    *) echo "gpu_reports.sh: no stage $stage; there are step, planner, frozen, learning and tests" >&2; exit 2 ;;
  esac
done
"$py" -c 'import sys, torch; sys.exit(torch.cuda.device_count() < 2)' || { echo "gpu_reports.sh: $py sees no two GPUs" >&2; exit 2; }
failed=0
for stage in "$@"; do
  begun=$SECONDS
  "$stage" > "$out/$stage.log" 2>&1 && word=done || { word=FAILED; failed=1; }
  echo "$stage: $word after $((SECONDS - begun)) s, see $out/$stage.log"
done
exit $failed
