"""Where metrics go: a file of JSON lines and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_hpc.observe.jsonl import JsonLines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricSinks:
    """Writes every metric to every sink.

    Args:
        metrics_path: rows of ``{"step": ..., "time": ..., <name>: <value>}``; ``time`` in seconds since the epoch.
        tensorboard_dir: where TensorBoard's files go; None writes none.
    """

    def __init__(self, metrics_path: str | Path, tensorboard_dir: str | Path | None) -> None:
        self._lines = JsonLines(metrics_path)
        self._tensorboard_dir = tensorboard_dir
        self._tensorboard: SummaryWriter | None = None
        self._purge_step: int | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row for ``step``."""
        self._lines.write([{"step": step, "time": round(time.time(), 3), **metrics}])
        if self._tensorboard_dir is not None:
            writer = self._writer()
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    def rewind(self, step: int) -> None:
        """Forget what was written after ``step``; 0 forgets everything, also what was measured before the first step.

        TensorBoard files cannot be cut, so its reader is told to disregard the later points. Call this before the
        first :meth:`log`.
        """
        self._lines.keep(lambda row: step > 0 and row["step"] <= step)
        self._purge_step = step + 1 if step else 0

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def _writer(self) -> SummaryWriter:
        """Made at the first use: importing TensorBoard takes seconds, and a rewind may come first."""
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self._tensorboard_dir), purge_step=self._purge_step)
        return self._tensorboard
