"""Where metrics go: a file of JSON lines always, and the reporters that the run names (:mod:`.reporters`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from grpo_hpc.observe.history import History, is_step
from grpo_hpc.observe.jsonl import JsonLines
from grpo_hpc.observe.phase_picture import CAPTION, phase_picture

PICTURE_STEPS = 100
"""Steps between two pictures of where the time went."""


class Sink(Protocol):
    """One place that metrics go to, all under the same names."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of ``step``."""

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show some completions, as they are recorded, that ``step`` was the first to use."""

    def picture(self, step: int, name: str, pixels: np.ndarray, caption: str) -> None:
        """Show a picture, uint8 [height, width, 3], as it is after ``step``."""

    def rewind(self, step: int) -> None:
        """A resumed run will write everything after ``step`` again; called before the first :meth:`log`."""

    def close(self) -> None:
        """Write out what is still held back."""


class MetricSinks:
    """Writes every metric to every sink.

    Args:
        metrics_path: rows of ``{"step": ..., "time": ..., <name>: <value>}``; ``time`` in seconds since the epoch.
        reporters: further sinks. One that fails later on is left out from then on: curves are no reason to end a run.
        lost: is told in words when that happens.
    """

    def __init__(
        self, metrics_path: str | Path, reporters: Sequence[Sink] = (), lost: Callable[[str], None] = print
    ) -> None:
        self._lines = JsonLines(metrics_path)
        self._reporters = list(reporters)
        self._lost = lost

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row for ``step``."""
        self._lines.write([{"step": step, "time": round(time.time(), 3), **metrics}])
        self._each(lambda reporter: reporter.log(step, metrics))
        if "time/step" in metrics and step % PICTURE_STEPS == 0:
            self._draw()

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Some completions of ``step`` for the reporters; all of them have a file of their own."""
        self._each(lambda reporter: reporter.completions(step, rows))

    def rewind(self, step: int) -> None:
        """Forget what was written after ``step``; 0 forgets everything, also what was measured before the first step.

        Call this before the first :meth:`log`.
        """
        self._lines.keep(lambda row: is_step(row.get("step")) and step > 0 and row["step"] <= step)
        self._each(lambda reporter: reporter.rewind(step))

    def close(self) -> None:
        """Let every reporter finish, with a last picture of where the time went."""
        self._draw()
        self._each(lambda reporter: reporter.close())
        self._reporters = []

    def _draw(self) -> None:
        history = History.read(self._lines.path) if self._reporters else History()
        newest = history.last("time/step")
        pixels = phase_picture(history)
        if newest is not None and pixels is not None:
            self._each(lambda reporter: reporter.picture(newest[0], "phases", pixels, CAPTION))

    def _each(self, do: Callable[[Sink], None]) -> None:
        for reporter in list(self._reporters):
            try:
                do(reporter)
            except Exception as error:  # libraries that talk to servers raise all sorts
                self._reporters.remove(reporter)
                self._lost(f"{type(reporter).__name__} failed and gets no more metrics: {error}")
