"""Ratios of probabilities from the difference of their logarithms, which no difference can make infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_LOG = 20.0
"""e^20 = 5e8 is far beyond any bound of a ratio, and fp32 holds its square. verl bounds logarithms there, too."""


def bounded_log(log_ratio: Tensor) -> Tensor:
    """``log_ratio`` in [-20, 20]: inside unchanged with its gradient, outside the bound without one."""
    return log_ratio.clamp(-LARGEST_LOG, LARGEST_LOG)


def ratio_of(log_ratio: Tensor) -> Tensor:
    """``exp(log_ratio)``, at most e^20 and at least e^-20, without a gradient there."""
    return bounded_log(log_ratio).exp()
