"""The reference policy of the KL term, and how it follows the trained one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo_hpc.models.movers import local_parameters
from grpo_hpc.models.policy_model import PolicyModel


def mix_into(reference: Sequence[PolicyModel], policy: Sequence[PolicyModel], alpha: float) -> None:
    """``ref <- (1 - alpha) ref + alpha policy``: TR-DPO's soft update (arXiv 2404.09656, section 3).

    Both models are cut over the ranks in the same way, so every rank mixes what it holds.
    """
    with torch.no_grad():
        ours = local_parameters(policy)
        for name, theirs in local_parameters(reference).items():
            theirs.lerp_(ours[name].to(theirs.dtype), alpha)
