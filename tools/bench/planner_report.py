"""The page that holds the planner's estimates beside what was measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from grpo_hpc.config import load_run
from grpo_hpc.plan.make import Estimate, make_plan
from grpo_hpc.plan.measured.measured_errors import FILE as ACCURACY
from grpo_hpc.plan.memory import GIB
from tools.bench.random_model import SHAPES

PHASES = ("start", "sync", "rollout", "logprob", "train")


@dataclass(frozen=True)
class Row:
    """One setting: what the planner says of it, and what came of it."""

    name: str
    found: dict[str, Any]
    estimate: Estimate

    @property
    def ran(self) -> bool:
        return "peak_gib" in self.found

    @property
    def timed(self) -> bool:
        """Memory alone was kept where seconds were not those of this program."""
        return "step_s" in self.found

    @property
    def ran_out(self) -> bool:
        return bool(self.found.get("ended") == "ran out of memory")

    @property
    def eager(self) -> bool:
        """vLLM had no CUDA graphs."""
        return self.estimate.execution.eager

    @property
    def peak(self) -> float:
        return self.estimate.memory.peak.total / GIB

    @property
    def step(self) -> float:
        return self.estimate.times.step if self.estimate.times else 0.0

    def error(self, what: str) -> float:
        """Relative error of the estimated ``step`` or ``peak``."""
        seen = self.found["step_s"] if what == "step" else self.found["peak_gib"]
        return float((self.step if what == "step" else self.peak) / seen - 1)


def read_rows(results: Path) -> list[Row]:
    """All settings that were measured, with the planner's estimates of today."""
    return [_row(file) for file in sorted(results.glob("*.json"))]


def _row(file: Path) -> Row:
    found = json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        content = found["run_file"]
        content["model"]["path"] = folder
        (Path(folder) / "config.json").write_text(json.dumps(_config(found["shape"])))
        run = Path(folder) / "run.yaml"
        run.write_text(yaml.safe_dump(content))
        plan = make_plan(load_run(str(run), found["keys"]), round(found.get("mean_length", 0)) or None)
    assert plan.estimate is not None
    return Row(file.stem, found, plan.estimate)


def _config(shape: str) -> dict[str, Any]:
    return SHAPES[shape] | {"max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6}


def write_report(results: Path) -> str:
    """The page; how far off the planner is goes to ``plan/measured/accuracy.yaml``, too."""
    rows = read_rows(results)
    ran = [row for row in rows if row.ran]
    ACCURACY.write_text("# Written by tools/plan_measured.py.\n" + yaml.safe_dump(_accuracy(ran), sort_keys=False))
    return "\n".join(
        [_HEAD, *_settings(rows), *_notes(rows), _SUMMARY, *_summary(rows, ran), _BY_PHASE, *_phases(ran), _FOOT]
    )


def _accuracy(ran: Sequence[Row]) -> dict[str, dict[str, float]]:
    found = {
        "time": _errors([row for row in ran if not row.eager], "step"),
        "time_eager": _errors([row for row in ran if row.eager], "step"),
        "memory": _errors(ran, "peak"),
    }
    return {
        what: {
            "runs": len(errors),
            "median": round(median(map(abs, errors)), 2),
            "lowest": round(min(errors), 2),
            "highest": round(max(errors), 2),
        }
        for what, errors in found.items()
    }


def _errors(rows: Sequence[Row], what: str) -> list[float]:
    return [row.error(what) for row in rows if row.timed or what == "peak"]


def _settings(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        keys = ", ".join(key for key in row.found["keys"])
        f = row.found
        memory, seconds = f"{row.peak:.1f} | - | -", f"{row.step:.2f} | - | -"
        if row.ran:
            memory = f"{row.peak:.1f} | {f['peak_gib']:.1f} | {row.error('peak'):+.1%}"
        if row.timed:
            seconds = f"{row.step:.2f} | {f['step_s']:.2f} | {row.error('step'):+.0%}"
        came = "ran" if row.ran else f["ended"].splitlines()[-1][:40]
        gpus = f["run_file"]["resources"]["nproc_per_node"]
        name = row.name + (" (frozen)" if f["frozen"] else "")
        lines.append(
            f"| {name} | {f['shape']} | {gpus} | {keys} | {row.estimate.verdict} | {came} | {memory} | {seconds} |"
        )
    return lines


def _notes(rows: Sequence[Row]) -> list[str]:
    """What the results say of themselves, such as what is known to be wrong with them."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if note := row.found.get("note"):
            notes.setdefault(note, []).append(row.name)
    return [f"\n{', '.join(names)}: {note}" for note, names in notes.items()]


def _summary(rows: Sequence[Row], ran: Sequence[Row]) -> list[str]:
    lines = []
    groups = {
        "all": ran,
        "frozen": [row for row in ran if row.found["frozen"]],
        "CUDA graphs in vLLM": [row for row in ran if not row.eager],
        "no CUDA graphs there": [row for row in ran if row.eager],
    }
    for label, chosen in groups.items():
        for what, unit in (("peak", "peak memory"), ("step", "step time")):
            if errors := [abs(error) for error in _errors(chosen, what)]:
                lines.append(f"| {label} | {unit} | {len(errors)} | {median(errors):.1%} | {max(errors):.1%} |")
    false = [row.name for row in rows if row.ran_out and row.estimate.verdict == "fits"]
    afraid = [row.name for row in rows if row.ran and row.estimate.verdict == "does not fit"]
    lines += [
        "",
        f'False "fits": {", ".join(false) or "none"}. Ran although "does not fit": {", ".join(afraid) or "none"}.',
    ]
    return lines


def _phases(ran: Sequence[Row]) -> list[str]:
    lines = []
    for row in ran:
        uses = {use.phase: use.total / GIB for use in row.estimate.memory.phases}
        times = row.estimate.times
        spent = {phase.name: phase.seconds / row.estimate.task.steps for phase in times.phases} if times else {}
        cells = []
        for phase in PHASES:
            seen = row.found["phases_gib"].get(phase)
            cells.append("-" if seen is None else f"{uses[phase]:.1f} / {seen:.1f}")
        for phase in ("sync", "rollout", "logprob", "train", "offload"):
            seen = f"{row.found['phases_s'].get(phase, 0):.2f}" if row.timed else "-"
            cells.append(f"{spent.get(phase, 0):.2f} / {seen}")
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return lines


_HEAD = """# The planner and this trainer on H200s

Made by `python tools/plan_measured.py report docs/benchmarks/planner`; the runs by its `measure` on NVIDIA H200s
(tools/bench/settings.py says what each is). Random weights, completions of full length, one step to warm up and two
that count. Memory is the most that the first rank's process held of its GPU, everything included; the estimate is of
the fullest GPU. Each triple is estimate, measured, error.

| run | model | GPUs | keys | verdict | came of it | GiB | | | step s | | |
|---|---|---|---|---|---|---|---|---|---|---|---|"""

_SUMMARY = """
## Errors

Frozen runs were set aside: nothing was fitted to them.

| runs | of | number | median | worst |
|---|---|---|---|---|"""

_BY_PHASE = """
## Phase by phase

Estimate / measured: GiB at the fullest moment of a phase, seconds for each optimizer step.

| run | GiB: start | sync | rollout | logprob | train | s: sync | rollout | logprob | train | offload |
|---|---|---|---|---|---|---|---|---|---|---|"""

_FOOT = """
## How it was made

```sh
python tools/plan_measured.py measure --gpus 0,1 --folder /tmp/planner --out docs/benchmarks/planner
python tools/plan_measured.py measure --gpus 0,1 --folder /tmp/planner --out docs/benchmarks/planner --frozen
python tools/plan_measured.py report docs/benchmarks/planner > docs/benchmarks/planner.md
```
"""
