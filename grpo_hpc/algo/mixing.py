"""A hash of integers that works on whole tensors, the same on every device."""

from __future__ import annotations

from torch import Tensor


def mix(bits: Tensor) -> Tensor:
    """int64 to int64, one to one and 0 to 0, so that close numbers give unlike ones.

    splitmix64's output function (Steele et al., OOPSLA 2014) with arithmetic shifts, as torch has them.
    """
    bits = (bits ^ (bits >> 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ (bits >> 27)) * -0x6B2FB644ECCEEE15
    return bits ^ (bits >> 31)
