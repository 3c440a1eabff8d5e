"""The GRPO objective, token by token.

Shapes: N scored tokens of one micro-batch, in packing order. A completion's advantage is repeated on its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLoss:
    """Per-token loss and what is worth watching about it, each [N]; only ``loss`` carries a gradient."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    kl: Tensor


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    *,
    epsilon: float,
    epsilon_high: float,
    beta: float,
) -> TokenLoss:
    """Clipped surrogate plus the KL penalty (DeepSeekMath, arXiv 2402.03300, equation 3; PPO, 1707.06347).

    ``-min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) + beta KL``, ``rho = pi / pi_old``. The separate upper
    bound is DAPO's clip-higher (arXiv 2503.14476).

    Args:
        logprobs: [N] of the policy being trained.
        old_logprobs: [N] of the policy that the update started from; None when that is the same policy (the first
            and only update of a rollout), where ``rho`` is 1 in value and not in gradient.
        ref_logprobs: [N] of the reference policy; needed when ``beta`` is not 0.
        advantages: [N].
    """
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    ratio = (logprobs - old).exp()
    clipped_ratio = ratio.clamp(1.0 - epsilon, 1.0 + epsilon_high)
    surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    clipped = ((ratio < 1.0 - epsilon) & (advantages < 0)) | ((ratio > 1.0 + epsilon_high) & (advantages > 0))
    kl = kl_k3(logprobs, ref_logprobs) if ref_logprobs is not None else torch.zeros_like(logprobs)
    loss = beta * kl - surrogate if beta else -surrogate
    return TokenLoss(loss, ratio.detach(), clipped, kl.detach())


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: ``e^d - d - 1``, ``d = log ref - log policy``.

    Never negative, unbiased (http://joschu.net/blog/kl-approx.html).
    """
    d = ref_logprobs - logprobs
    return torch.expm1(d) - d


def sample_mean_weights(lengths: Sequence[int], samples: int) -> list[float]:
    """Weight of each token of each completion, so that a plain sum is the mean over samples of token means.

    GRPO's normalisation, ``1/samples * sum_i 1/|o_i| * sum_t``: exact over the optimizer step for whatever split into
    micro-batches and ranks, because the weights are fixed before the split.

    Args:
        lengths: scored tokens of each completion at hand.
        samples: completions in the whole optimizer step, on all ranks.
    """
    return [1.0 / (samples * length) for length in lengths]
