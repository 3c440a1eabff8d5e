"""The plan of a run beside what was measured: seconds of a step, memory of a GPU, and what to change."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from grpo_hpc.observe.history import History, finite
from grpo_hpc.observe.state import STEP_PHASES
from grpo_hpc.report.recorded_run import RecordedRun
from grpo_hpc.runs.run_dir import short_path

_WARM_UP = 0.1  # share of the steps, at the beginning, in which kernels are compiled and caches filled
_FAR, _FREE, _FULL = 1.25, 0.15, 0.03
_SEEN = 0.05  # of a step; what is shorter is no reason to change anything


@dataclass(frozen=True)
class Line:
    """One phase.

    Attributes:
        what: the phase, or ``step`` or ``peak`` for the whole.
        planned, measured: seconds of an optimizer step, or GiB; None where there is no figure.
    """

    what: str
    planned: float | None
    measured: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; with how many times what was planned was measured."""
        ratio = self.measured / self.planned if self.planned and self.measured is not None else None
        return {**asdict(self), "ratio": ratio}


def counted_steps(history: History) -> list[int]:
    """The steps whose times count, in order: those of the beginning do not."""
    steps = sorted(history.series("time/step"))
    return steps[int(len(steps) * _WARM_UP) + (len(steps) > 1) :]


def measured_seconds(history: History) -> dict[str, float]:
    """Seconds of an optimizer step by phase, and of the whole ``step``; empty before the first."""
    counted = counted_steps(history)
    return {
        name.removeprefix("time/"): sum(finite(history.series(name).get(step) for step in counted)) / len(counted)
        for name in history.names("time/")
        if counted
    }


def time_lines(run: RecordedRun) -> list[Line]:
    """Seconds of one optimizer step, its share of the rollout included; the first steps are not counted."""
    planned, measured = run.planned.seconds, measured_seconds(run.history)
    names = [name for name in (*STEP_PHASES, "step") if name in planned or name in measured]
    return [Line(name, planned.get(name), measured.get(name)) for name in names]


def memory_lines(run: RecordedRun) -> list[Line]:
    """GiB of the fullest GPU as planned, and the most that the first rank has held."""
    planned = run.planned.gib
    peaks = {name: run.history.last(name) for name in run.history.names("memory/peak_gib")}
    measured = {name.removeprefix("memory/peak_gib").lstrip("/"): found[1] for name, found in peaks.items() if found}
    names = [name for name in dict.fromkeys([*planned, *measured]) if name]
    whole = Line("peak", max(planned.values(), default=None), measured.get(""))
    return [*(Line(name, planned.get(name), measured.get(name)) for name in names), whole]


def advice(run: RecordedRun, times: list[Line], memory: list[Line]) -> list[str]:
    """What a person could change, each a sentence with its numbers."""
    return [*_about_lengths(run), *_about_time(times), *_about_memory(run, memory[-1])]


def _about_lengths(run: RecordedRun) -> list[str]:
    planned = run.planned.average_completion
    lengths = finite(run.course("completions/mean_length").values())
    timed = bool(run.planned.seconds)  # or there is no time that other lengths would change
    if not timed or not planned or not lengths or 1 / _FAR < fmean(lengths) / planned < _FAR:
        return []
    mean = round(fmean(lengths))
    return [
        f"Completions had {mean:,} tokens on average, and the plan counted with {planned:,.0f}: plan the next run with "
        f"--like {short_path(run.run_dir.path)}."
    ]


def _about_time(lines: list[Line]) -> list[str]:
    whole = next((line.measured for line in lines if line.what == "step"), None) or 0.0
    slow = [
        line
        for line in lines
        if line.what != "step" and line.planned and line.measured and line.measured > _SEEN * whole
        if line.measured > _FAR * line.planned
    ]
    return [
        f"The phase {line.what} took {line.measured:.2f} s of a step where {line.planned:.2f} s were planned; "
        f"`grpo-hpc plan RUN --explain time` shows what the plan counted."
        for line in slow
    ]


def _about_memory(run: RecordedRun, peak: Line) -> list[str]:
    room = run.planned.memory_gib
    if not room or not peak.measured:
        return []
    free = 1 - peak.measured / room
    by_tokens = run.settings.get("batch.max_tokens_per_micro_batch", "null") != "null"
    batch = "batch.max_tokens_per_micro_batch" if by_tokens else "batch.micro_batch_size"
    if free > _FREE:
        return [
            f"{room - peak.measured:.0f} of {room:g} GiB were never used: a larger rollout.vllm_kv_cache_gib or "
            f"{batch} would use them, and `grpo-hpc plan RUN --search` looks for layouts."
        ]
    if free < _FULL:
        return [
            f"{max(0.0, room - peak.measured):.1f} of {room:g} GiB were free at the peak: one longer batch may not fit."
        ]
    return []
