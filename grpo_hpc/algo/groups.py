"""Completions that are compared with each other: the samples of one place in the order of prompts.

Shapes: B completions, P prompts. A reward of NaN means that the completion got no score: it takes part in nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Groups:
    """Which completions are of one group, in whatever order they come; groups may differ in size.

    Args:
        names: B names of groups: completions of one name are one group.
    """

    def __init__(self, names: Sequence[Hashable]) -> None:
        number: dict[Hashable, int] = {}
        self.index = torch.tensor([number.setdefault(name, len(number)) for name in names], dtype=torch.long)
        self.count = len(number)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over each group without its NaNs: [B] -> [P]."""
        return values.new_zeros(self.count).index_add_(0, self.index, values.nan_to_num(0.0))

    def sizes(self, values: Tensor) -> Tensor:
        """How many of each group have a value: [B] -> [P]."""
        return self.sum((~values.isnan()).to(values.dtype))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of each group: [B] -> [P]; 0 where no completion has a value."""
        return self.sum(values) / self.sizes(values).clamp(min=1)

    def centred(self, values: Tensor) -> Tensor:
        """Values minus the mean of their group: [B] -> [B]; 0 exactly where a group's values are all equal."""
        centred = values - self.mean(values)[self.index]
        return centred.masked_fill(self.alike(values)[self.index] & ~values.isnan(), 0.0)

    def deviation(self, values: Tensor) -> Tensor:
        """Unbiased (n-1) standard deviation of each group: [B] -> [P]; 0 for a group of one."""
        return (self.sum(self.centred(values) ** 2) / (self.sizes(values) - 1).clamp(min=1)).sqrt()

    def alike(self, values: Tensor) -> Tensor:
        """Whether a group's values are all equal: [B] -> [P] bool."""
        return self._extreme(values, "amin") >= self._extreme(values, "amax")

    def _extreme(self, values: Tensor, which: str) -> Tensor:
        limit = torch.inf if which == "amin" else -torch.inf
        filled = values.masked_fill(values.isnan(), limit)
        return values.new_full((self.count,), limit).scatter_reduce_(0, self.index, filled, which)
