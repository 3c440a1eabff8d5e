"""What the script of a run's page is given: everything about a run but its completions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from grpo_hpc.html_page import COLOURS
from grpo_hpc.observe.events import read_events
from grpo_hpc.observe.metrics import PHASES, in_order, lookup, reward_name
from grpo_hpc.report.differences import differences
from grpo_hpc.report.planned_and_measured import advice, memory_lines, time_lines
from grpo_hpc.report.recorded_run import RecordedRun
from grpo_hpc.report.where_time_went import seconds_by_phase

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
_KINDS = ("settings", "environment")


def page_data(runs: Sequence[RecordedRun], keys: Sequence[str]) -> dict[str, Any]:
    """What all ``runs`` share, and each of them.

    Args:
        keys: what a sweep varies; with several runs and none, what differs between their files.
    """
    found = differences(runs) if len(runs) > 1 else None
    return {
        "runs": [run_data(run) for run in runs],
        "metrics": about_metrics(name for run in runs for name in run.history.names()),
        "groups": [*_GROUPS, "Others"],
        "phases": PHASES,
        "colours": COLOURS,
        "differences": found and {kind: [asdict(one) for one in getattr(found, kind)] for kind in _KINDS},
        "keys": list(keys) or ([one.key for one in found.settings] if found else []),
    }


def run_data(run: RecordedRun) -> dict[str, Any]:
    """One run."""
    return {
        **_facts(run),
        "label": run.label,
        "path": run.standing.run_dir,
        "metrics": _courses(run),
        "settings": run.settings,
        "environment": run.environment,
    }


def growth(run: RecordedRun, after: int) -> dict[str, Any]:
    """What changes of a run while it works, with the values of its metrics behind the step ``after``."""
    courses = {name: _course(run, name, after) for name in run.history.names()}
    return {**_facts(run), "courses": {name: course for name, course in courses.items() if course["at"]}}


def about_metrics(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Label, unit, meaning and group of each metric, in the order in which they are shown."""
    return {name: _about(name) for name in in_order(names)}


def _facts(run: RecordedRun) -> dict[str, Any]:
    times, memory, stand = time_lines(run), memory_lines(run), run.standing
    return {
        "state": stand.state,
        "detail": stand.detail,
        "step": stand.step,
        "steps": stand.total_steps,
        "spent": seconds_by_phase(read_events(run.run_dir.events)[0]),
        "attempts": [asdict(attempt) for attempt in run.attempts],
        "time": [line.to_dict() for line in times],
        "memory": [line.to_dict() for line in memory],
        "advice": advice(run, times, memory),
    }


def _courses(run: RecordedRun) -> dict[str, Any]:
    """Every metric; ``at`` names its steps, and is None where they are those of the run's optimizer steps."""
    steps = list(run.course("time/step"))
    courses = {name: _course(run, name) for name in run.history.names()}
    for course in courses.values():
        course["at"] = None if course["at"] == steps else course["at"]
    return {"steps": steps, "courses": courses}


def _course(run: RecordedRun, name: str, after: int = -1) -> dict[str, Any]:
    course = {step: value for step, value in run.course(name).items() if step > after}
    return {"at": list(course), "values": [_short(value) for value in course.values()]}


def _short(value: object) -> float | None:
    """``value`` with the digits that can be seen; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def _about(name: str) -> dict[str, str]:
    metric = lookup(name)
    group = next((group for group, begins in _GROUPS.items() if name.startswith(begins)), "Others")
    if metric is None:
        return {"label": name, "unit": "", "meaning": "", "group": group}
    label = metric.label.replace("<name>", reward_name(name)) if "/" in name else metric.label
    return {"label": label, "unit": metric.unit, "meaning": metric.meaning, "group": group}
