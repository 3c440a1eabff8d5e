"""Estimates of KL(policy || reference) at sampled tokens: Schulman, http://joschu.net/blog/kl-approx.html.

Shapes: N tokens; ``d = log ref - log policy``. Values and gradients are finite in fp32 for every d.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grpo_hpc.algo.ratios import bounded_log


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``-d``: unbiased, of either sign. As a loss term its gradient is 0 on average: meant for rewards."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``d^2 / 2``: never negative, biased; its gradient is that of the KL divergence when sampling is on-policy."""
    return 0.5 * (ref_logprobs - logprobs) ** 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``e^d - d - 1``: never negative and unbiased.

    Beyond ``|d| = 20`` it stays as it is there and has no gradient: in fp32 it is infinite from 89 on, and one token at
    20 has a gradient of 5e8 already.
    """
    d = bounded_log(ref_logprobs - logprobs)
    return torch.expm1(d) - d


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
