"""Corrections for completions that another policy sampled: the engine's, or an older one.

Shapes: N scored tokens of one micro-batch in packing order, S completions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo_hpc.algo.sequences import Sequences

CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

_LARGEST_LOG = 20.0  # e^20 is far beyond any bound, and finite


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
        token = log_weight.clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
        bounded = token
        if self.mode.startswith("sequence"):
            mean = sequences.mean(log_weight).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
            bounded = sequences.spread(mean)
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


def entropy_threshold(entropies: Tensor, share: float) -> float:
    """A threshold that the ``share`` of tokens with the highest entropy lies above: arXiv 2506.01939.

    Those are the tokens whose entropy is at least the ``1 - share`` quantile (interpolated linearly). The threshold
    returned lies between the last one left out and the first one kept, so that rounding cannot move a token across.

    Args:
        entropies: of all scored tokens of the optimizer step, on all ranks.
        share: in (0, 1].
    """
    ordered = entropies.double().flatten().sort().values
    place = (1.0 - share) * (len(ordered) - 1)
    below, part = int(place), place - int(place)
    quantile = ordered[below].lerp(ordered[min(below + 1, len(ordered) - 1)], part)
    first = int(torch.searchsorted(ordered, quantile))
    if first == 0:
        return -torch.inf
    return float((ordered[first - 1] + ordered[min(first, len(ordered) - 1)]) / 2)
