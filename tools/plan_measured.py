"""Hold the planner against this trainer on this machine's GPUs.

    python tools/plan_measured.py measure --out docs/benchmarks/planner --folder /scratch/planner [--frozen] [NAME...]
    python tools/plan_measured.py report docs/benchmarks/planner > docs/benchmarks/planner.md

``measure`` runs settings of tools/bench/settings.py, those of one GPU on all GPUs at once, and leaves one JSON file for
each. ``report`` needs no GPU. It also tells `grpo-hpc plan` how far off the planner is (plan/measured/accuracy.yaml).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml

from tools.bench.random_model import save_prompts
from tools.bench.settings import SETTINGS, STEPS, WARMUP, Setting, overrides, run_file, vocabulary

ROOT = Path(__file__).parents[1]
OUT_OF_MEMORY = (
    "out of memory",
    "less than desired GPU memory utilization",
    "No available memory for the cache blocks",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or report."""
    options = _parser().parse_args(argv)
    if options.command == "report":
        from tools.bench.planner_report import write_report

        print(write_report(options.results), end="")
        return 0
    if unknown := sorted(set(options.names) - set(SETTINGS)):
        print(f"no such setting: {', '.join(unknown)}; there are {', '.join(SETTINGS)}", file=sys.stderr)
        return 2
    names = options.names or [name for name, each in SETTINGS.items() if each.frozen == options.frozen]
    measure(names, options)
    return 0


def measure(names: Sequence[str], options: argparse.Namespace) -> None:
    """Run the settings, each alone on its GPUs, and write down what came of each."""
    for shape in sorted({SETTINGS[name].shape for name in names}):
        model = options.folder / "models" / shape
        subprocess.run([sys.executable, "-m", "tools.bench.random_model", str(model), shape], check=True, cwd=ROOT)
    options.out.mkdir(parents=True, exist_ok=True)
    for size in sorted({SETTINGS[name].gpus for name in names}):
        _measure_all([name for name in names if SETTINGS[name].gpus == size], size, options)


def _measure_all(names: Sequence[str], size: int, options: argparse.Namespace) -> None:
    """Settings of ``size`` GPUs, as many at a time as there are so many GPUs."""
    free: SimpleQueue[str] = SimpleQueue()
    groups = [options.gpus[at : at + size] for at in range(0, len(options.gpus) - size + 1, size)]
    for group in groups:
        free.put(",".join(group))

    def alone(name: str) -> None:
        gpus = free.get()
        _measure(name, gpus, options)
        free.put(gpus)

    with ThreadPoolExecutor(len(groups)) as pool:
        list(pool.map(alone, names))


def _measure(name: str, gpus: str, options: argparse.Namespace) -> None:
    found = run(name, SETTINGS[name], gpus, options)
    (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    said = f"{found['step_s']:.2f} s, {found['peak_gib']:.1f} GiB" if "step_s" in found else found["ended"]
    print(f"{name}: {said}", flush=True)


def run(name: str, setting: Setting, gpus: str, options: argparse.Namespace) -> dict[str, Any]:
    """What came of one run: means over the counted steps and peaks over all, or how it ended."""
    content = run_file(name, setting, options.folder, options.device)
    save_prompts(Path(content["data"]["train"]), setting.completions // 8 * setting.steps, setting.prompt,
                 vocabulary(setting))  # fmt: skip
    keys = overrides(setting)
    result: dict[str, Any] = {"run_file": content, "keys": keys, "frozen": setting.frozen, "shape": setting.shape}
    shown = os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        command = [sys.executable, "-m", "grpo_hpc.cli", "submit", file.name, "--fresh", *keys]
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=options.timeout,
                                  env=shown)  # fmt: skip
        except subprocess.TimeoutExpired:
            return result | {"ended": f"stopped after {options.timeout} s"}
    folder = options.folder / "runs" / name
    if done.returncode:
        said = done.stdout + done.stderr + "".join(log.read_text() for log in folder.glob("attempt_*/rank_*.log"))
        ran_out = any(phrase in said for phrase in OUT_OF_MEMORY)
        return result | {"ended": "ran out of memory" if ran_out else (done.stdout + done.stderr)[-2000:]}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result | figures([row for row in rows if "time/step" in row])


def figures(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Seconds and GiB of a run from its metrics."""
    counted = rows[len(rows) * WARMUP // STEPS :]
    phases = {key.removeprefix("time/") for row in counted for key in row if key.startswith("time/")} - {"step"}
    return {
        "step_s": fmean(row["time/step"] for row in counted),
        "phases_s": {phase: sum(row.get(f"time/{phase}", 0.0) for row in counted) / len(counted) for phase in phases},
        "mean_length": fmean(row["completions/mean_length"] for row in counted if "completions/mean_length" in row),
        "peak_gib": rows[-1]["memory/peak_gib"],
        "phases_gib": {
            key.removeprefix("memory/peak_gib/"): value
            for key, value in rows[-1].items()
            if key.startswith("memory/peak_gib/")
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("measure", help="run settings on this machine")
    measured.add_argument("names", nargs="*", metavar="NAME", help="settings; all by default")
    measured.add_argument("--frozen", action="store_true", help="by default those that are set aside, not the others")
    measured.add_argument("--out", type=Path, required=True, help="folder for one JSON file of each")
    measured.add_argument("--folder", type=Path, required=True, help="scratch: models and runs")
    measured.add_argument("--gpus", type=lambda text: text.split(","), default=["0"], help="devices, as in 0,1")
    measured.add_argument("--timeout", type=float, default=110, help="seconds of one setting")
    measured.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    report = commands.add_parser("report", help="write the page")
    report.add_argument("results", type=Path)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
