"""One page about one run or several: curves, where the time went, the plan beside what was measured, completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from grpo_hpc.files import write_atomically
from grpo_hpc.html_page import COLOURS, page
from grpo_hpc.observe.events import read_events
from grpo_hpc.observe.jsonl import json_text
from grpo_hpc.observe.metrics import PHASES, in_order, lookup, reward_name
from grpo_hpc.report.completion_rows import Sample, clear, sample, write_beside
from grpo_hpc.report.differences import differences
from grpo_hpc.report.planned_and_measured import advice, memory_lines, time_lines
from grpo_hpc.report.recorded_run import RecordedRun
from grpo_hpc.report.where_time_went import seconds_by_phase

_SCRIPT = Path(__file__).with_name("script")
_PARTS = (
    "elements",
    "charts",
    "bars",
    "sweep",
    "completions",
    "page",
)  # in the order in which they build on each other
_DIGITS = 6
_GROUPS = {
    "Reward": ("reward/", "rewards/"),
    "Held out": ("eval/",),
    "Length": ("completions/",),
    "Policy": ("kl", "entropy", "clip_ratio/", "ratio/", "mask/", "staleness/"),
    "Optimisation": ("loss", "grad_norm", "learning_rate", "skipped_updates", "tokens/"),
    "Engine and trainer": ("mismatch/", "rollout_correction/", "sync/"),
    "Throughput": ("throughput/", "packing/", "dynamic/"),
    "Experts": ("moe/",),
    "Memory": ("memory/",),
    "Time": ("time/",),
}


def write_run_page(
    runs: Sequence[RecordedRun],
    file: Path,
    *,
    completions: int,
    all_completions: bool = False,
    keys: Sequence[str] = (),
    damaged: Sequence[tuple[str, str]] = (),
) -> Path | None:
    """Write the page.

    Args:
        completions: about how many the page holds, of all runs together.
        all_completions: write all of them into a folder beside the page, too.
        keys: what a sweep varies; with several runs and none, what differs between their files.
        damaged: path and reason of runs that are left out.

    Returns:
        The folder beside the page, if there is one.
    """
    beside = file.with_name(f"{file.name}.completions") if all_completions else None
    title = ", ".join(run.label for run in runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
    notes = [f"{path} is left out: {reason}" for path, reason in damaged]
    notes += [f"{run.label}: {text}" for run in runs for text in run.damaged]
    if beside is not None:
        clear(beside)
    each = math.ceil(completions / len(runs))
    entries = [_run(number, run, each, beside, notes) for number, run in enumerate(runs)]
    found = differences(runs) if len(runs) > 1 else None
    data = {
        "runs": entries,
        "metrics": {name: _about(name) for name in in_order(name for run in runs for name in run.history.names())},
        "groups": [*_GROUPS, "Others"],
        "phases": PHASES,
        "colours": COLOURS,
        "differences": found and {kind: [asdict(one) for one in getattr(found, kind)] for kind in _KINDS},
        "keys": list(keys) or ([one.key for one in found.settings] if found else []),
        "beside": beside.name if beside else None,
        "notes": notes,
    }
    script = "\n".join((_SCRIPT / f"{part}.js").read_text(encoding="utf-8") for part in _PARTS)
    style = (_SCRIPT / "page.css").read_text(encoding="utf-8")
    body = (
        f"<h1>{escape(title)}</h1>\n<noscript>The curves are drawn by a script in this file.</noscript>\n<main></main>"
    )
    text = page(title, body, style=style, script=script, data=json_text(data), beside=beside is not None)
    write_atomically(file, text)
    return beside


_KINDS = ("settings", "environment")


def _run(number: int, run: RecordedRun, completions: int, beside: Path | None, notes: list[str]) -> dict[str, Any]:
    found = sample(run.run_dir.completions, completions)
    if beside is not None:
        found.damaged = write_beside(number, run.run_dir.completions, beside)
    notes += [f"{run.label}: {text}" for text in found.damaged]
    times, memory = time_lines(run), memory_lines(run)
    stand = run.standing
    return {
        "label": run.label,
        "path": stand.run_dir,
        "state": stand.state,
        "detail": stand.detail,
        "step": stand.step,
        "steps": stand.total_steps,
        "metrics": _courses(run),
        "spent": seconds_by_phase(read_events(run.run_dir.events)[0]),
        "attempts": [asdict(attempt) for attempt in run.attempts],
        "time": [line.to_dict() for line in times],
        "memory": [line.to_dict() for line in memory],
        "advice": advice(run, times, memory),
        "settings": run.settings,
        "environment": run.environment,
        "completions": _completions(found),
    }


def _courses(run: RecordedRun) -> dict[str, Any]:
    """Every metric; ``at`` names its steps, and is None where they are those of the run's optimizer steps."""
    steps = list(run.course("time/step"))
    courses: dict[str, Any] = {}
    for name in run.history.names():
        course = run.course(name)
        at = list(course)
        courses[name] = {"at": None if at == steps else at, "values": [_short(value) for value in course.values()]}
    return {"steps": steps, "courses": courses}


def _short(value: object) -> float | None:
    """``value`` with the digits that can be seen; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def _completions(found: Sample) -> dict[str, Any]:
    return {"steps": found.steps, "rows": found.rows}


def _about(name: str) -> dict[str, str]:
    metric = lookup(name)
    group = next((group for group, begins in _GROUPS.items() if name.startswith(begins)), "Others")
    if metric is None:
        return {"label": name, "unit": "", "meaning": "", "group": group}
    label = metric.label.replace("<name>", reward_name(name)) if "/" in name else metric.label
    return {"label": label, "unit": metric.unit, "meaning": metric.meaning, "group": group}
