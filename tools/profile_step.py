"""Where the training phase of a step spends its time: packing, the host, the GPU and what the GPU waits for.

    python tools/profile_step.py dense-4b --out profile.json
    python tools/profile_step.py experts --steps 2
    python tools/profile_step.py toy --device cpu

Takes a setting of tools/bench/settings.py and makes its optimizer steps on random completions, without an engine. After
the timed steps one more runs under PyTorch's profiler; the GPU is busy while a kernel or a copy runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.bench.launch import on_ranks
from tools.bench.settings import SETTINGS, Setting, overrides

TOY = Setting("toy", 16, 24, 8, {"max_tokens_per_micro_batch": 128})


def main(argv: Sequence[str] | None = None) -> int:
    """Profile, print, and write JSON with ``--out``."""
    options = _parser().parse_args(argv)
    setting = SETTINGS.get(options.setting, TOY)
    # the number of steps reaches the worker as the run's own
    keys = [key for key in overrides(setting) if options.device == "cuda" or "vllm_" not in key]
    keys.append(f"train_iters={options.steps}")
    found = on_ranks("profile_rank", f"profile-{options.setting}", setting, options.folder, options.device, keys)
    print(text(found))
    if options.out:
        options.out.write_text(json.dumps({"setting": options.setting, **found}, indent=1) + "\n")
    return 0


def text(found: dict[str, Any]) -> str:
    """The figures for a reader."""
    lines = [
        f"step {n}: packing {s['pack']:.3f} s, update {s['update']:.3f} s" for n, s in enumerate(found["steps"], 1)
    ]
    if gpu := found.get("gpu"):
        lines.append(
            f"GPU: busy {gpu['busy']:.3f} s of {gpu['span']:.3f} s in {gpu['kernels']:,} kernels; it waits "
            f"{gpu['long_gaps']:.3f} s in gaps above a millisecond, {gpu['short_gaps']:.3f} s in shorter ones"
        )
        lines += [f"  {seconds:8.3f} s {count:7,} x {name}" for name, seconds, count in gpu["longest"]]
    return "\n".join([*lines, found["host"]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=[*SETTINGS, "toy"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=4, help="timed ones, the first of them cold")
    parser.add_argument("--folder", type=Path, default=Path("runs/profile"), help="scratch: models")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
