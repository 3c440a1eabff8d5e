"""Advantages from rewards, relative to the other completions of the same prompt.

Shapes: B completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

# added to the standard deviation, as in the DeepSeekMath reference implementations
STD_EPSILON = 1e-4


def group_advantages(rewards: Tensor, prompt_ids: Sequence[str], scale: Literal["group", "none"]) -> Tensor:
    """Reward minus the mean reward of its group, over the group's standard deviation.

    ``A_i = (r_i - mean_g) / (std_g + 1e-4)`` with the unbiased (n-1) deviation: DeepSeekMath, arXiv 2402.03300,
    section 4.1.2. With ``scale="none"`` the division is left out: Dr. GRPO, arXiv 2503.20783. A group is what shares
    a prompt id, in whatever order it comes; groups may differ in size. Where all rewards of a group are equal, the
    advantages are 0 exactly.

    Args:
        rewards: [B].
        prompt_ids: B identifiers.

    Returns:
        [B] float32.
    """
    index, count = _group_index(prompt_ids)
    values = rewards.double()
    sizes = torch.zeros(count, dtype=torch.float64).index_add_(0, index, torch.ones_like(values))
    means = torch.zeros(count, dtype=torch.float64).index_add_(0, index, values) / sizes
    low, high = _group_extremes(values, index, count)
    centred = (values - means[index]).masked_fill((low == high)[index], 0.0)  # the mean itself may be rounded
    if scale == "none":
        return centred.float()
    squares = torch.zeros(count, dtype=torch.float64).index_add_(0, index, centred**2)
    std = (squares / (sizes - 1).clamp(min=1)).sqrt()
    return (centred / (std[index] + STD_EPSILON)).float()


def zero_variance_fraction(rewards: Tensor, prompt_ids: Sequence[str]) -> float:
    """Share of groups whose rewards are all equal: they teach nothing."""
    index, count = _group_index(prompt_ids)
    low, high = _group_extremes(rewards.double(), index, count)
    return float((low == high).double().mean())


def _group_extremes(values: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each group."""
    low = values.new_full((count,), torch.inf).scatter_reduce_(0, index, values, "amin")
    high = values.new_full((count,), -torch.inf).scatter_reduce_(0, index, values, "amax")
    return low, high


def _group_index(prompt_ids: Sequence[str]) -> tuple[Tensor, int]:
    """Number of each completion's group [B] and how many groups there are."""
    number: dict[str, int] = {}
    index = [number.setdefault(prompt, len(number)) for prompt in prompt_ids]
    return torch.tensor(index), len(number)
