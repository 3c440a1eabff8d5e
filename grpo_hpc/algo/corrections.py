"""Corrections for completions that another policy sampled: the engine's, or an older one.

Shapes: N scored tokens of one micro-batch in packing order, S completions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_hpc.algo.ratios import ratio_of
from grpo_hpc.algo.sequences import Sequences

CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def _alone(counts: Tensor) -> Tensor:
    """The total over a single rank."""
    return counts


@dataclass(frozen=True)
class RolloutCorrection:
    """Importance sampling between the engine that sampled and the policy that the update starts from.

    ``w_t = pi_old / pi_rollout`` per token; ``w_i`` is its geometric mean over a completion. Truncation is TIS (Yao et
    al., 2025, https://fengyao.notion.site/off-policy-rl), masking is MIS.

    Attributes:
        mode: what is bounded, and whether what lies outside is moved to the bound or masked out.
        upper, lower: the bounds.
    """

    mode: CorrectionMode
    upper: float
    lower: float = 0.0

    def weights(self, old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Weight of each token's loss [N], and whether a bound acted on it: [N] bool. Neither has a gradient."""
        log_weight = (old_logprobs - rollout_logprobs).detach()
        token = ratio_of(log_weight)
        bounded = token
        if self.mode.startswith("sequence"):
            bounded = sequences.spread(ratio_of(sequences.mean(log_weight)))
        outside = (bounded < self.lower) | (bounded > self.upper)
        if self.mode.endswith("mask"):
            return token.masked_fill(outside, 0.0), outside
        return bounded.clamp(self.lower, self.upper), outside


def stale_negatives(
    logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor, sequences: Sequences, delta: float
) -> Tensor:
    """Tokens of completions with a negative advantage that the policy has moved away from: [N] bool.

    A completion is one when the mean over its tokens of ``log pi_behaviour - log pi`` is above ``delta``:
    DeepSeek-V3.2, arXiv 2512.02556, section 3.1. They leave the loss and stay in its denominator, as in the paper.
    """
    distance = sequences.mean((behaviour_logprobs - logprobs).detach())
    return (sequences.spread(distance) > delta) & (advantages < 0)


def entropy_threshold(entropies: Tensor, share: float, total: Callable[[Tensor], Tensor] = _alone) -> float:
    """A threshold that the ``share`` of tokens with the highest entropy lies above: arXiv 2506.01939.

    Those are the tokens whose entropy is at least the ``1 - share`` quantile (interpolated linearly). The threshold
    returned lies between the last one left out and the first one kept, so that rounding cannot move a token across.

    Args:
        entropies: float32 [N] of this rank's scored tokens of the optimizer step.
        share: in (0, 1].
        total: sums counts over all ranks, each of which calls this; no token leaves its rank.
    """
    keys = _ordered_bits(entropies)
    count = int(total(torch.tensor([len(keys)])))
    if count == 0:
        return -torch.inf
    place = (1.0 - share) * (count - 1)
    below, part = int(place), place - int(place)
    low, smaller = _select(keys, below, total)
    high, _ = _select(keys, min(below + 1, count - 1), total)
    if low + part * (high - low) > low:
        return (low + high) / 2
    if smaller == 0:
        return -torch.inf
    return (_select(keys, smaller - 1, total)[0] + low) / 2


def _ordered_bits(values: Tensor) -> Tensor:
    """float32 as integers below 2^32 in the same order: int64 [N]."""
    bits = values.detach().float().cpu().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >> 31 > 0, 0xFFFFFFFF - bits, bits + 0x80000000)


def _select(keys: Tensor, place: int, total: Callable[[Tensor], Tensor]) -> tuple[float, int]:
    """The value at ``place`` in the order of all ranks' ``keys``, and how many are smaller.

    By counting the upper halves of all numbers first, then the lower halves of those that share the upper one.
    """
    upper = total(torch.bincount(keys >> 16, minlength=1 << 16)).cumsum(0)
    first = int(torch.searchsorted(upper, place, right=True))
    before = int(upper[first - 1]) if first else 0
    lower = total(torch.bincount(keys[keys >> 16 == first] & 0xFFFF, minlength=1 << 16)).cumsum(0)
    second = int(torch.searchsorted(lower, place - before, right=True))
    key = first << 16 | second
    bits = key - 0x80000000 if key >= 0x80000000 else 0xFFFFFFFF - key
    value = torch.tensor([bits - (1 << 32) if bits >> 31 else bits], dtype=torch.int32).view(torch.float32)
    return float(value), before + (int(lower[second - 1]) if second else 0)
