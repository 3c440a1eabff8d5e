"""Metrics over the steps of a run, read back from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo_hpc.observe.jsonl import number, read_from

Value = float | None  # None: it was not finite


class History:
    """Value by step for every metric name. Steps are noted in their order, so the last one noted is the newest."""

    def __init__(self) -> None:
        self._series: dict[str, dict[int, Value]] = {}

    @classmethod
    def read(cls, metrics_path: str | Path) -> History:
        """What ``metrics_path`` holds; a missing file is an empty history."""
        history = cls()
        for row in read_from(metrics_path)[0]:
            if is_step(row.get("step")):
                values = {name: number(value) for name, value in row.items() if name not in ("step", "time")}
                history.add(row["step"], values)
        return history

    def add(self, step: int, values: Mapping[str, Value]) -> None:
        """Note the values of a step."""
        for name, value in values.items():
            self._series.setdefault(name, {})[step] = value

    def forget_after(self, step: int) -> None:
        """Drop everything that belongs to later steps: a resumed run makes them again."""
        for series in self._series.values():
            for later in [at for at in series if at > step]:
                del series[later]

    def series(self, name: str) -> Mapping[int, Value]:
        """Value by step, in the order they were noted; empty when there is none."""
        return self._series.get(name, {})

    def last(self, name: str) -> tuple[int, Value] | None:
        """The newest step with this metric, and its value."""
        series = self._series.get(name)
        return next(reversed(series.items())) if series else None

    def names(self, prefix: str = "") -> list[str]:
        """Names of metrics with values, in the order they first came."""
        return [name for name, series in self._series.items() if series and name.startswith(prefix)]


def is_step(value: Any) -> bool:
    """The number of an optimizer step."""
    return type(value) is int and 0 <= value < 2**53


def finite(values: Iterable[Value]) -> list[float]:
    """``values`` without those that were not finite."""
    return [value for value in values if value is not None]


def first_and_last_fifth(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and the last fifth of ``values`` (at least one value each, and there must be one)."""
    size = max(1, len(values) // 5)
    return fmean(values[:size]), fmean(values[-size:])
