"""From the run file's section ``algorithm`` to the objective of the mathematics."""

from __future__ import annotations

from grpo_hpc.algo.corrections import RolloutCorrection
from grpo_hpc.algo.losses import LOSSES
from grpo_hpc.algo.objective import Objective
from grpo_hpc.config import RunConfig


def objective_of(cfg: RunConfig) -> Objective:
    """The objective of a run. With ``kl_in_reward`` the KL term is no part of it."""
    a = cfg.algorithm
    loss = LOSSES[a.loss_type]
    correction = None
    if a.rollout_importance_sampling_mode is not None:
        correction = RolloutCorrection(
            a.rollout_importance_sampling_mode,
            upper=a.rollout_importance_sampling_threshold,
            lower=a.rollout_importance_sampling_min,
        )
    return Objective(
        loss,
        {name: getattr(a, name) for name in loss.options},
        a.importance_sampling_level,
        beta=0.0 if a.kl_in_reward else a.beta,
        kl_estimator=a.kl_estimator,
        entropy_coef=a.entropy_coef,
        correction=correction,
        stale_delta=a.off_policy_sequence_mask_delta,
    )
