"""What each completion of a rollout is worth: advantages, and the weight of its tokens in the loss.

Both are worked out from the summaries of the whole rollout on every rank, before it is split, and from the rewards of
all turns. A group is what shares a position. The branches of an episode count once, and are worth the same. Shapes: B
samples (see :func:`grpo_hpc.rollout.sample.summary_type`), E episodes.
"""

from __future__ import annotations

import numpy as np
import torch

from grpo_hpc.algo.advantages import advantages, gdpo_advantages, teaches, turn_advantages
from grpo_hpc.algo.denominators import ms_swift_weights, token_weights
from grpo_hpc.algo.losses import LOSSES
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.rollout.sample import LENGTH


def set_advantages(cfg: RunConfig, whole: np.ndarray, kl: np.ndarray | None = None) -> None:
    """Fill in ``advantage``.

    Args:
        whole: one row for each episode.
        kl: float64 [E], the sum of log old - log ref over each episode (k1), where the reward pays for it.
    """
    positions = whole["position"].tolist()
    if cfg.algorithm.scale_rewards == "gdpo":
        weights = cfg.rewards.reward_weights or [1.0] * len(cfg.rewards.reward_funcs)
        values = gdpo_advantages(_tensor(whole["rewards"]), weights, positions)
    else:
        paid = 0.0 if kl is None else cfg.algorithm.beta * kl
        rewards, estimator = _tensor(whole["reward"] - paid), cfg.algorithm.advantage_estimator
        values = advantages(rewards, positions, estimator, cfg.algorithm.scale_rewards)
    whole["advantage"] = values.numpy()


def set_turn_advantages(cfg: RunConfig, turns: np.ndarray) -> None:
    """Order ``turns`` and fill in ``advantage``, which has ``algorithm.turn_advantage_coef`` in it.

    Args:
        turns: :func:`grpo_hpc.rollout.sample.turn_rows` of all completions.
    """
    turns.sort(order=["position", "sample", "branch", "turn"])
    scale = cfg.algorithm.scale_rewards
    assert scale != "gdpo", "a rule of the run file"
    of_episodes = np.unique(turns[["position", "sample"]], return_counts=True)[1].tolist()
    values = turn_advantages(_tensor(turns["reward"]), turns["position"].tolist(), of_episodes, scale)
    turns["advantage"] = values.numpy() * cfg.algorithm.turn_advantage_coef


def set_token_weights(cfg: RunConfig, schedule: BatchSchedule, whole: np.ndarray) -> None:
    """Fill in ``token_weight`` for every optimizer step of a pass over the rollout.

    Args:
        whole: one row for each episode, in sampling order.
    """
    a, size = cfg.algorithm, schedule.global_batch_size
    rollout_tokens = int(whole["sampled"].sum())
    for start in range(0, len(whole), size):
        share = whole[start : start + size]
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
    """Whether each completion's group has rewards that differ, or of turns where these count: bool [B]."""
    if not len(table):
        return np.zeros(0, bool)
    rewards, groups = (
        table["rewards" if cfg.algorithm.scale_rewards == "gdpo" else "reward"],
        table["position"].tolist(),
    )
    found = teaches(_tensor(rewards), groups).numpy()
    if cfg.algorithm.turn_advantage_coef:
        scored = table["answers"] & ~np.isnan(table["reward"])
        extremes = np.where(scored, [table["lowest_turn"], table["highest_turn"]], np.nan)
        found |= teaches(_tensor(extremes.ravel()), groups * 2).numpy()[: len(table)]
    return found


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64))
