"""What a completion is worth: its text, and what the reward functions say of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo_hpc.config.sections import Rewards
from grpo_hpc.data.rows import Row
from grpo_hpc.rewards.runner import RewardRunner
from grpo_hpc.rewards.score import Answer, score
from grpo_hpc.rollout.sample import Sample


class Decoder(Protocol):
    """What scoring needs of :class:`grpo_hpc.data.tokenizer.Tokenizer`."""

    def decode(self, tokens: list[int]) -> str: ...
    def opening(self, row: Row) -> str: ...


@dataclass(frozen=True)
class Scored:
    """A completion on the rank that scored it.

    Attributes:
        text: what was sampled, without special tokens.
        rewards: by reward function; None where it gave no score.
        failures: by reward function that failed on it, ``error``, ``timeout`` or ``killed``, a colon, and why.
        reward: the weighted total; NaN where no function gave a score.
    """

    sample: Sample
    text: str
    rewards: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reward: float = float("nan")


class Scorer:
    """Scores completions, many at a time.

    Args:
        needed: columns of the data that functions ask for; a row without one has null there.
    """

    def __init__(self, rewards: Rewards, tokenizer: Decoder, runner: RewardRunner, needed: Iterable[str] = ()) -> None:
        self._rewards, self._tokenizer, self._runner = rewards, tokenizer, runner
        self._columns: dict[str, Any] = dict.fromkeys(needed)
        self._opening: tuple[str, str] = ("", "")  # of the prompt that was asked for last

    async def score(self, sample: Sample, row: Row) -> Scored:
        """``sample`` with text and rewards; what the engine gave up has none.

        Raises:
            RewardError: a function failed whose failures end the run.
        """
        r = self._rewards
        if not sample.answers:
            return Scored(sample, "", dict.fromkeys(r.columns))
        tokens = sample.response.tolist()
        text = self._tokenizer.decode(tokens)
        answer = Answer(
            completion=text,
            prompt=row.messages,
            columns=self._columns | row.columns,
            finish_reason=sample.reason,
            completion_ids=tokens,
            assistant_turn=self._opening_of(row) + text,
        )
        found = await asyncio.wrap_future(score(self._runner, r.columns, r.reward_weights, r.reward_failure, answer))
        return Scored(sample, text, found.rewards, found.failures, found.total)

    def _opening_of(self, row: Row) -> str:
        """What the template begins an answer with; completions of one prompt end near each other."""
        if self._opening[0] != row.prompt_id:
            self._opening = row.prompt_id, self._tokenizer.opening(row)
        return self._opening[1]
