"""The record that travels from sampling to the optimizer, and into the checkpoint when a rollout is half used."""

from __future__ import annotations

import base64
import dataclasses
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpo_hpc.errors import RolloutError


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
        routing: experts that its tokens go to in training (:func:`pack_experts`); None where routers choose.
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
    routing: str | None = None

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


def pack_experts(experts: Tensor) -> str:
    """Expert numbers [tokens, layers * k] as text, compressed: a byte or less for each, in checkpoints as well."""
    raw = len(experts).to_bytes(4, "little") + experts.to("cpu", torch.int16).contiguous().numpy().tobytes()
    return base64.b64encode(zlib.compress(raw, 1)).decode()


def unpack_experts(text: str, tokens: int) -> Tensor:
    """The first ``tokens`` rows of what :func:`pack_experts` was given: int16 [tokens, layers * k].

    Raises:
        RolloutError: there are fewer.
    """
    raw = bytearray(zlib.decompress(base64.b64decode(text)))
    rows = torch.frombuffer(raw[4:], dtype=torch.int16).view(int.from_bytes(raw[:4], "little"), -1)
    if len(rows) < tokens:
        raise RolloutError(f"the routing of a completion has {len(rows)} tokens, and {tokens} are trained on")
    return rows[:tokens]
