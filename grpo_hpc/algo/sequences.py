"""The completions of a packed micro-batch, and sums along them.

Shapes: N scored tokens in packing order, S completions. The tokens of a completion are whole and adjacent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Where each completion's tokens lie.

    Attributes:
        lengths: [S] scored tokens of each completion, at least 1.
        index: [N] number of each token's completion.
    """

    lengths: Tensor
    index: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> Sequences:
        return cls(lengths, torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths))

    def sum(self, values: Tensor) -> Tensor:
        """[N] -> [S]."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.index, values)

    def mean(self, values: Tensor) -> Tensor:
        """[N] -> [S]."""
        return self.sum(values) / self.lengths

    def spread(self, values: Tensor) -> Tensor:
        """Each completion's value on all of its tokens: [S] -> [N]."""
        return values[self.index]

    def discounted_suffix(self, values: Tensor, discount: float) -> Tensor:
        """``y_t = sum over k >= t of discount^(k - t) x_k`` within each completion: [N] -> [N].

        By doubling: after round j every y_t covers 2^j tokens, so the longest completion sets the number of rounds.
        """
        total, step, longest = values, 1, int(self.lengths.max())
        while step < longest:
            further = total.new_zeros(total.shape)
            same = self.index[step:] == self.index[:-step]
            further[:-step] = (discount**step) * total[step:] * same
            total, step = total + further, 2 * step
        return total
