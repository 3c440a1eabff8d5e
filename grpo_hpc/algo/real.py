"""REAL's loss over groups, and its slope in each completion's score (arXiv 2602.05630).

Shapes: B completions of one optimizer step, on all ranks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from grpo_hpc.algo.groups import Groups


def slopes(
    scores: Tensor, advantages: Tensor, lengths: Sequence[int], names: Sequence[Hashable], tau: float
) -> tuple[Tensor, float]:
    """What takes the place of the advantages in a step, and the loss of the step.

    A group with both signs of advantage loses ``log(1 + sum_neg e^(s/tau)) + log(1 + sum_pos e^(-s/tau))``, where an
    advantage of 0 counts as negative; other groups lose nothing. The loss is the mean over all groups.

    Args:
        scores: [B] mean log ratio ``s`` of each completion, without gradient.
        advantages: [B], of which only the sign counts.
        lengths: B numbers of scored tokens.
        names: B names of groups: completions of one name are one group.

    Returns:
        [B] float32 such that ``sum -value * log_ratio / tokens`` over all tokens of the step has the gradient of the
        loss, and the loss.
    """
    groups = Groups(names)
    s = scores.double().requires_grad_()
    positive = advantages > 0
    exponent = torch.where(positive, -s, s) / tau
    with torch.enable_grad():
        total = _log_one_plus(exponent, ~positive, groups) + _log_one_plus(exponent, positive, groups)
        mixed = (groups.sum(positive.double()) > 0) & (groups.sum((~positive).double()) > 0)
        loss = total[mixed].sum() / groups.count
        (slope,) = torch.autograd.grad(loss, s) if bool(mixed.any()) else (torch.zeros_like(s),)
    tokens = torch.tensor(lengths, dtype=torch.float64)
    return (-slope * tokens.sum() / tokens).float(), float(loss.detach())


def _log_one_plus(exponent: Tensor, chosen: Tensor, groups: Groups) -> Tensor:
    """``log(1 + sum of e^x)`` over the chosen members of each group, without overflow: [B] -> [P]."""
    members = exponent.masked_fill(~chosen, -torch.inf)
    top = exponent.new_zeros(groups.count).scatter_reduce(0, groups.index, members.detach(), "amax")  # at least 0
    summed = exponent.new_zeros(groups.count).index_add(0, groups.index, (members - top[groups.index]).exp())
    return top + ((-top).exp() + summed).log()
