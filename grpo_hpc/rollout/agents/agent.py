"""An agent: a program with a loop of its own, which asks the policy over HTTP and says what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from grpo_hpc.data.rows import Row


@dataclass(frozen=True)
class Outcome:
    """What an agent says at the end of its episode.

    Attributes:
        reward: for the whole episode; None where the agent gives none.
        counts: what happened in it, by name, for metrics.
    """

    reward: float | None = None
    counts: dict[str, int] = field(default_factory=dict)


class Agent(Protocol):
    """Works on one row."""

    async def run(self, row: Row, base_url: str, key: str) -> Outcome:
        """One episode.

        Args:
            base_url: of an endpoint with OpenAI's chat completions, ``http://HOST:PORT/v1``.
            key: the API key of this episode, which says to the endpoint which one it is.

        Raises:
            EpisodeFailed: it cannot go on.
        """
