"""What each completion of a rollout is worth: advantages, and the weight of its tokens in the loss.

Both are worked out from the summaries of the whole rollout on every rank, before it is split. A group is what shares a
position. Shapes: B completions (see :func:`grpo_hpc.rollout.sample.summary_type`).
"""

from __future__ import annotations

import numpy as np
import torch

from grpo_hpc.algo.advantages import advantages, gdpo_advantages, teaches
from grpo_hpc.algo.denominators import ms_swift_weights, token_weights
from grpo_hpc.algo.losses import LOSSES
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.rollout.sample import LENGTH


def set_advantages(cfg: RunConfig, table: np.ndarray, kl: np.ndarray | None = None) -> None:
    """Fill in ``advantage``.

    Args:
        kl: float64 [B], the sum of log old - log ref over each completion (k1), where the reward pays for it.
    """
    a, positions = cfg.algorithm, table["position"].tolist()
    if a.scale_rewards == "gdpo":
        weights = cfg.rewards.reward_weights or [1.0] * len(cfg.rewards.reward_funcs)
        values = gdpo_advantages(_tensor(table["rewards"]), weights, positions)
    else:
        rewards = _tensor(table["reward"] if kl is None else table["reward"] - a.beta * kl)
        values = advantages(rewards, positions, a.advantage_estimator, a.scale_rewards)
    table["advantage"] = values.numpy()


def set_token_weights(cfg: RunConfig, schedule: BatchSchedule, table: np.ndarray) -> None:
    """Fill in ``token_weight`` for every optimizer step of a pass over the rollout."""
    a, size = cfg.algorithm, schedule.global_batch_size
    rollout_tokens = int(table["sampled"].sum())
    for start in range(0, len(table), size):
        share = table[start : start + size]
        lengths, kept = share["sampled"].tolist(), share["answers"].copy()
        if a.overlong_filter:
            kept &= share["end"] != LENGTH
        if a.loss_scaling == "ms_swift":
            share["token_weight"] = ms_swift_weights(
                a.loss_type, lengths, kept.tolist(), schedule.micro_batch_size, rollout_tokens, schedule.dp
            )
        else:
            longest = cfg.rollout.max_completion_length
            share["token_weight"] = token_weights(LOSSES[a.loss_type].denominator, lengths, kept.tolist(), longest)


def informative(cfg: RunConfig, table: np.ndarray) -> np.ndarray:
    """Whether each completion's group has rewards that differ: bool [B]."""
    if not len(table):
        return np.zeros(0, bool)
    rewards = table["rewards" if cfg.algorithm.scale_rewards == "gdpo" else "reward"]
    return teaches(_tensor(rewards), table["position"].tolist()).numpy()


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64))
