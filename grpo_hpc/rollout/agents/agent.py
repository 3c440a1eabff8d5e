"""An agent: a program with a loop of its own, which asks the policy over HTTP and says what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo_hpc.data.rows import Row
from grpo_hpc.rollout.environments.protocol import EpisodeFailed

_LARGEST = 1e30
"""Rewards are squared and summed."""


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


def outcome_of(value: Any) -> Outcome:
    """What an agent gave: fields of an outcome, a reward alone, or nothing.

    Raises:
        EpisodeFailed: it gave something else.
    """
    told = value if isinstance(value, dict) else {"reward": value}
    if strange := [name for name in told if name not in ("reward", "counts")]:
        raise EpisodeFailed(
            "error", f"the agent's outcome has {str(strange[0])[:60]!r}, and not only reward and counts"
        )
    return Outcome(_reward(told.get("reward")), _counts(told.get("counts", {})))


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and abs(value) < _LARGEST and math.isfinite(value):
        return float(value)
    raise EpisodeFailed("error", f"the agent gave the reward {str(value)[:60]}, which is no number")


def _counts(value: Any) -> dict[str, int]:
    if isinstance(value, dict) and all(type(count) is int and 0 <= count < 2**31 for count in value.values()):
        return value
    raise EpisodeFailed("error", "the agent gave counts that are no whole numbers")
