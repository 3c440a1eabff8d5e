"""The reference policy of the KL term, and how it follows the trained one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import Parameter

from grpo_hpc.models.policy import PolicyModel


def mix_into(reference: Sequence[PolicyModel], policy: Sequence[PolicyModel], alpha: float) -> None:
    """``ref <- (1 - alpha) ref + alpha policy``: TR-DPO's soft update (arXiv 2404.09656, section 3).

    Both models are cut over the ranks in the same way, so every rank mixes what it holds.
    """
    with torch.no_grad():
        for theirs, ours in zip(_parameters(reference), _parameters(policy), strict=True):
            theirs.lerp_(ours.to(theirs.dtype), alpha)


def _parameters(chunks: Sequence[PolicyModel]) -> Iterator[Parameter]:
    return (parameter for chunk in chunks for parameter in chunk.parameters())
