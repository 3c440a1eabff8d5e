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
    a prompt id, in whatever order it comes; groups may differ in size, and a group of one has advantage 0.

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
    centred = values - means[index]
    if scale == "none":
        return centred.float()
    squares = torch.zeros(count, dtype=torch.float64).index_add_(0, index, centred**2)
    std = (squares / (sizes - 1).clamp(min=1)).sqrt()
    return (centred / (std[index] + STD_EPSILON)).float()


def zero_variance_fraction(rewards: Tensor, prompt_ids: Sequence[str]) -> float:
    """Share of groups whose rewards are all equal: they teach nothing."""
    index, count = _group_index(prompt_ids)
    low = torch.full((count,), torch.inf).scatter_reduce_(0, index, rewards.float(), "amin")
    high = torch.full((count,), -torch.inf).scatter_reduce_(0, index, rewards.float(), "amax")
    return float((low == high).float().mean())


def _group_index(prompt_ids: Sequence[str]) -> tuple[Tensor, int]:
    """Number of each completion's group [B] and how many groups there are."""
    number: dict[str, int] = {}
    index = [number.setdefault(prompt, len(number)) for prompt in prompt_ids]
    return torch.tensor(index), len(number)
