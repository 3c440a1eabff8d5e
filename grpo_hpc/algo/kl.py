"""Estimates of KL(policy || reference) at sampled tokens: Schulman, http://joschu.net/blog/kl-approx.html.

Shapes: N tokens; ``d = log ref - log policy``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``-d``: unbiased, of either sign. As a loss term its gradient is 0 on average: meant for rewards."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``d^2 / 2``: never negative, biased; its gradient is that of the KL divergence when sampling is on-policy."""
    return 0.5 * (ref_logprobs - logprobs) ** 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``e^d - d - 1``: never negative and unbiased."""
    d = ref_logprobs - logprobs
    return torch.expm1(d) - d


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
