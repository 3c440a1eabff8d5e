"""From scored completions to what the optimizer is taught: advantages, and the weight of every token.

Both are worked out from the whole rollout on every rank, before it is split. Shapes: B completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo_hpc.algo.advantages import advantages, gdpo_advantages, teaches
from grpo_hpc.algo.denominators import ms_swift_weights, token_weights
from grpo_hpc.algo.losses import LOSSES
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.rollout.trajectory import Trajectory


def set_advantages(cfg: RunConfig, rollout: Sequence[Trajectory]) -> None:
    """Fill in ``advantage``; with ``kl_in_reward`` old and reference log-probabilities must be there."""
    a, prompt_ids = cfg.algorithm, [t.prompt_id for t in rollout]
    if a.scale_rewards == "gdpo":
        weights = cfg.rewards.reward_weights or [1.0] * len(cfg.rewards.reward_funcs)
        values = gdpo_advantages(_columns(rollout), weights, prompt_ids)
    else:
        rewards = torch.tensor([t.reward for t in rollout], dtype=torch.float64)
        if a.kl_in_reward:
            rewards -= a.beta * torch.tensor([_summed_kl(t) for t in rollout], dtype=torch.float64)
        values = advantages(rewards, prompt_ids, a.advantage_estimator, a.scale_rewards)
    for trajectory, value in zip(rollout, values.tolist(), strict=True):
        trajectory.advantage = value


def set_token_weights(cfg: RunConfig, schedule: BatchSchedule, rollout: Sequence[Trajectory]) -> None:
    """Fill in ``token_weight`` for every optimizer step of a pass over ``rollout``."""
    a, size = cfg.algorithm, schedule.global_batch_size
    rollout_tokens = sum(len(t.response_tokens) for t in rollout)
    for start in range(0, len(rollout), size):
        share = rollout[start : start + size]
        lengths = [len(t.response_tokens) for t in share]
        kept = [not (a.overlong_filter and t.finish_reason == "length") for t in share]
        if a.loss_scaling == "ms_swift":
            weights = ms_swift_weights(
                a.loss_type, lengths, kept, schedule.micro_batch_size, rollout_tokens, schedule.dp
            )
        else:
            longest = cfg.rollout.max_completion_length
            weights = token_weights(LOSSES[a.loss_type].denominator, lengths, kept, longest)
        for trajectory, weight in zip(share, weights, strict=True):
            trajectory.token_weight = weight


def informative(cfg: RunConfig, sampled: Sequence[Trajectory]) -> list[bool]:
    """Whether each completion's group has rewards that differ: [B]. Groups are told apart by position."""
    if not sampled:
        return []
    gdpo = cfg.algorithm.scale_rewards == "gdpo"
    rewards = _columns(sampled) if gdpo else torch.tensor([t.reward for t in sampled], dtype=torch.float64)
    return teaches(rewards, [str(t.position) for t in sampled]).tolist()


def _columns(rollout: Sequence[Trajectory]) -> torch.Tensor:
    """Scores of every reward function, NaN where there is none: [B, F]."""
    rows = [[torch.nan if score is None else score for score in t.rewards.values()] for t in rollout]
    return torch.tensor(rows, dtype=torch.float64)


def _summed_kl(t: Trajectory) -> float:
    """k1 over the whole completion: the sum of log old - log ref."""
    if t.old_logprobs is None or t.ref_logprobs is None:
        raise ValueError("kl_in_reward needs old and reference log-probabilities")
    return sum(old - ref for old, ref in zip(t.old_logprobs, t.ref_logprobs, strict=True))
