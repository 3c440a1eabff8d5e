"""An agent in a process of its own, as the trainer sees it. Nothing that comes from there is trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from grpo_hpc.data.rows import Row
from grpo_hpc.rollout.agents.agent import Outcome, outcome_of


class Process(Protocol):
    """The process of an episode, and the object in it."""

    async def call(self, name: str, given: Sequence[Any], seconds: float | None = None) -> Any: ...

    async def close(self) -> None: ...


class ProcessAgent:
    """The :class:`~grpo_hpc.rollout.agents.agent.Agent` in ``process``, for one episode."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def run(self, row: Row, base_url: str, key: str) -> Outcome:
        """One episode; it ends the process. How long it may be silent, not how long it may take, is looked to by
        :func:`grpo_hpc.rollout.agents.agent_episode.play`."""
        try:
            return outcome_of(await self._process.call("run", [asdict(row), base_url, key], math.inf))
        finally:
            await self._process.close()
