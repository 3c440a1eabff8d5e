"""What differs between runs: in their files, in their environments, and in their metrics at equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from grpo_hpc.observe.history import Value, finite
from grpo_hpc.observe.metrics import in_order
from grpo_hpc.report.recorded_run import RecordedRun

_OWN = ("name", "output_dir", "created")  # they differ between any two runs and explain nothing


@dataclass(frozen=True)
class Difference:
    """One key, and its value in every run; None in those that have no such key."""

    key: str
    values: list[str | None]


@dataclass(frozen=True)
class Measured:
    """One metric of every run, at the same step and over the same steps.

    Attributes:
        at: values at the step that is compared.
        mean: means of the last fifth of the steps up to it that all runs have.
    """

    name: str
    at: list[Value]
    mean: list[Value]


@dataclass(frozen=True)
class Differences:
    """All of it.

    Attributes:
        step: the newest one that all runs have made, or the one that was asked for; None without any.
    """

    labels: list[str]
    settings: list[Difference]
    environment: list[Difference]
    step: int | None
    metrics: list[Measured]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


def differences(runs: Sequence[RecordedRun], step: int | None = None) -> Differences:
    """What differs between ``runs``."""
    if step is None:
        step = max(_shared_steps(runs, "time/step"), default=None)
    names = in_order(name for name in runs[0].history.names() if all(run.history.series(name) for run in runs[1:]))
    measured = [_measured(runs, name, step) for name in names] if step is not None else []
    return Differences(
        [run.label for run in runs],
        _differing([run.settings for run in runs]),
        _differing([run.environment for run in runs]),
        step,
        [found for found in measured if found],
    )


def _differing(files: Sequence[dict[str, str]]) -> list[Difference]:
    keys = dict.fromkeys(key for file in files for key in file)
    found = [Difference(key, [file.get(key) for file in files]) for key in keys if key not in _OWN]
    return [one for one in found if len(set(one.values)) > 1]


def _shared_steps(runs: Sequence[RecordedRun], metric: str) -> list[int]:
    return sorted(set.intersection(*(set(run.history.series(metric)) for run in runs)))


def _measured(runs: Sequence[RecordedRun], name: str, step: int) -> Measured | None:
    """None when the runs have no step in common up to ``step``."""
    shared = [at for at in _shared_steps(runs, name) if at <= step]
    if not shared:
        return None
    last = shared[-max(1, len(shared) // 5) :]
    known = [finite(run.history.series(name)[at] for at in last) for run in runs]
    at = [run.history.series(name)[shared[-1]] for run in runs]
    return Measured(name, at, [fmean(values) if values else None for values in known])
