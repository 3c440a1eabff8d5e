"""Advantages from rewards, relative to the other completions of the same prompt.

Everything is computed in float64 over the whole rollout, and depends on who is of one group, never on places in the
batch. A completion without a score (NaN) has advantage 0 and takes no part in any mean. Where all rewards of a group
are equal the advantages are 0 exactly.

Shapes: B completions, F reward functions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from grpo_hpc.algo.estimators import ESTIMATORS
from grpo_hpc.algo.groups import Groups

STD_EPSILON = 1e-4
"""Added to every standard deviation, as in TRL and ms-swift."""

Scale = Literal["group", "batch", "none", "gdpo"]


def advantages(
    rewards: Tensor, names: Sequence[Hashable], estimator: str, scale: Literal["group", "batch", "none"]
) -> Tensor:
    """Centred rewards over a standard deviation, [B] float32.

    ``group`` divides by the unbiased deviation of the completion's group (DeepSeekMath, arXiv 2402.03300), ``batch``
    by that of the whole rollout (REINFORCE++, arXiv 2501.03262), ``none`` by nothing (Dr. GRPO, arXiv 2503.20783).

    Args:
        rewards: [B], NaN where a completion has none.
        names: B names of groups: completions of one name are one group.
        estimator: name in ``ESTIMATORS``.
    """
    chosen, groups, values = ESTIMATORS[estimator], Groups(names), rewards.double()
    centred = chosen.function(values, groups)
    spread = values if chosen.scaled_by == "rewards" else centred
    if scale == "group":
        centred = centred / (groups.deviation(spread)[groups.index] + STD_EPSILON)
    elif scale == "batch":
        centred = centred / (_deviation(spread) + STD_EPSILON)
    return centred.nan_to_num(0.0).float()


def gdpo_advantages(columns: Tensor, weights: Sequence[float], names: Sequence[Hashable]) -> Tensor:
    """Every reward function normalised within its groups, then their weighted sum over its deviation: [B] float32.

    ``u_i = sum_f w_f (R_if - mean_g) / (std_g + 1e-4)``, ``A_i = u_i / (std_B(u) + 1e-4)``: GDPO, arXiv 2601.05242.
    The batch mean of ``u`` that the paper subtracts is 0 by construction.

    Args:
        columns: [B, F], NaN where a function gave no score.
        weights: F weights.
        names: B names of groups: completions of one name are one group.
    """
    groups, values = Groups(names), columns.double()
    total = values.new_zeros(len(values))
    for column, weight in zip(values.unbind(1), weights, strict=True):
        normalised = groups.centred(column) / (groups.deviation(column)[groups.index] + STD_EPSILON)
        total += weight * normalised.nan_to_num(0.0)
    total = total.masked_fill(values.isnan().all(1), torch.nan)
    return (total / (_deviation(total) + STD_EPSILON)).nan_to_num(0.0).float()


def turn_advantages(
    rewards: Tensor, names: Sequence[Hashable], turns: Sequence[int], scale: Literal["group", "batch", "none"]
) -> Tensor:
    """The sum of the normalised rewards of a turn and of all later ones of its completion, [N] float32.

    A reward is compared with those of all turns of its group: process supervision, DeepSeekMath, arXiv 2402.03300,
    section 4.1.3.

    Args:
        rewards: [N] of turns, completion by completion, NaN where one has none.
        names: N names of groups.
        turns: how many of them each completion has; N in all.
    """
    each = advantages(rewards, names, "grpo", scale).split(list(turns))
    return torch.cat([part.flip(0).cumsum(0).flip(0) for part in each])


def teaches(rewards: Tensor, names: Sequence[Hashable]) -> Tensor:
    """Whether the rewards of a completion's group differ, so that its group has an advantage: [B] bool.

    Args:
        rewards: [B], or [B, F] where a difference in any column counts.
    """
    groups = Groups(names)
    columns = rewards.double().reshape(len(rewards), -1).unbind(1)
    alike = torch.stack([groups.alike(column) for column in columns]).all(0)
    return ~alike[groups.index]


def zero_variance_fraction(rewards: Tensor, names: Sequence[Hashable]) -> float:
    """Share of groups whose rewards are all equal: they teach nothing."""
    return float(Groups(names).alike(rewards.double()).double().mean())


def _deviation(values: Tensor) -> Tensor:
    """Unbiased standard deviation of what is not NaN; 0 for a single value."""
    known = values[~values.isnan()]
    return known.std() if len(known) > 1 else values.new_zeros(())
