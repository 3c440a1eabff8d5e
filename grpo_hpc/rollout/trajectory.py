"""The record that travels from sampling to the optimizer, and into the checkpoint when a rollout is half used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Trajectory:
    """One completion and everything known about it.

    Attributes:
        prompt_id: names the group; completions of one prompt share it.
        position: place of the prompt in the endless sample order, with ``sample`` a total order of completions.
        sample: number of the completion within its group.
        prompt_tokens: token ids given to the engine.
        response_tokens: token ids as the engine returned them, never re-tokenised; with the end token, if reached.
        rollout_logprobs: the engine's log-probability of each response token.
        finish_reason: ``stop`` or ``length``.
        weight_version: optimizer steps behind the weights that sampled it.
        text: the response as text, without special tokens.
        rewards: one column per reward function; None where a function gave no score.
        failures: by reward function that failed on it, ``error``, ``timeout`` or ``killed``, a colon, and why.
        reward: the weighted total; NaN where no function gave a score.
        advantage: relative to its group.
        token_weight: of each of its tokens in the loss of its optimizer step; 0 when it is filtered out.
        old_logprobs: of the trainer, before the first update on this rollout; None when it was not needed.
        ref_logprobs: of the reference policy; None without one.
    """

    prompt_id: str
    position: int
    sample: int
    prompt_tokens: list[int]
    response_tokens: list[int]
    rollout_logprobs: list[float]
    finish_reason: str
    weight_version: int
    text: str
    rewards: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reward: float = 0.0
    advantage: float = 0.0
    token_weight: float = 1.0
    old_logprobs: list[float] | None = None
    ref_logprobs: list[float] | None = None

    @property
    def key(self) -> tuple[int, int]:
        """What names a completion within a run."""
        return self.position, self.sample

    @property
    def tokens(self) -> int:
        return len(self.prompt_tokens) + len(self.response_tokens)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Trajectory:
        return cls(**record)
