"""Torch's profile of some optimizer steps on some ranks, one trace for each step and rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

VIEWER = "https://ui.perfetto.dev"
"""Opens a trace in a browser, and sends it nowhere."""


class StepProfile:
    """Profiles what a step computes: log-probabilities that it needs, forward and backward passes, the update.

    The rollout is not in it: millions of small kernels would make a trace that nothing opens, and vLLM has its own
    profiler.

    Args:
        folder: for the traces; made when the first is written.
        steps: the first and the last one; None for none.
        ranks: whose steps.
    """

    def __init__(self, folder: Path, steps: Sequence[int] | None, ranks: Sequence[int], rank: int) -> None:
        self._folder, self._steps, self._ranks, self._rank = folder, steps, ranks, rank

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Profile what happens inside, where optimizer ``step`` on this rank is wanted."""
        if not (self._wanted(step) and self._rank in self._ranks):
            yield
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        with profile(activities=activities) as found:
            yield
        self._folder.mkdir(exist_ok=True)
        found.export_chrome_trace(str(self._folder / f"step_{step:08d}_rank_{self._rank}.json.gz"))

    def said(self, step: int) -> str:
        """How to look at what was written, behind the last of the steps; empty behind the others."""
        if not self._steps or step != self._steps[1]:
            return ""
        first, last = self._steps
        whose = f"steps {first} to {last}, ranks {', '.join(map(str, self._ranks))}"
        return f"profile of {whose}: {self._folder}/step_*.json.gz; open a file at {VIEWER}"

    def _wanted(self, step: int) -> bool:
        return self._steps is not None and self._steps[0] <= step <= self._steps[1]
