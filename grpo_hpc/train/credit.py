"""What each completion of a rollout is worth: advantages, and the weight of its tokens in the loss.

Both are worked out from the summaries of the whole rollout on every rank, before it is split; rewards of turns are
gathered as rows of their own. A group is what shares a position. The branches of an episode count once, and are worth
the same. Shapes: B samples (see :func:`grpo_hpc.rollout.sample.summary_type`), E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch

from grpo_hpc.algo.advantages import advantages, gdpo_advantages, teaches
from grpo_hpc.algo.denominators import ms_swift_weights, token_weights
from grpo_hpc.algo.losses import LOSSES
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.rollout.sample import LENGTH, Key, Sample, episode_of, episodes, keys_of

TURN = np.dtype([("position", "<i8"), ("sample", "<i4"), ("branch", "<i4"), ("turn", "<i4"), ("reward", "<f4")])
"""The type of a row that says what an environment gave for a turn; NaN where it gave nothing."""


def set_advantages(cfg: RunConfig, table: np.ndarray, kl: np.ndarray | None = None) -> None:
    """Fill in ``advantage``.

    Args:
        kl: float64 [B], the sum of log old - log ref over each sample (k1), where the reward pays for it.
    """
    a, episode, whole = cfg.algorithm, episode_of(table), episodes(table)
    positions = whole["position"].tolist()
    if a.scale_rewards == "gdpo":
        weights = cfg.rewards.reward_weights or [1.0] * len(cfg.rewards.reward_funcs)
        values = gdpo_advantages(_tensor(whole["rewards"]), weights, positions)
    else:
        paid = 0.0 if kl is None else a.beta * np.bincount(episode, kl)
        values = advantages(_tensor(whole["reward"] - paid), positions, a.advantage_estimator, a.scale_rewards)
    table["advantage"] = values.numpy()[episode]


def turn_rows(table: np.ndarray, held: Mapping[Key, Sample]) -> np.ndarray:
    """Rows of type ``TURN`` for the turns of those completions of ``table`` that have a score.

    One without, because its environment failed or the engine gave it up, has no vote in the baseline of turns either.

    Args:
        held: at least the completions of ``table``.
    """
    chosen = table[(table["turn_rewards"] > 0) & table["answers"] & ~np.isnan(table["reward"])]
    rows = np.zeros(int(chosen["turn_rewards"].sum()), TURN)
    at = 0
    for key in keys_of(chosen):
        rewards = held[key].turn_rewards
        part = rows[at : at + len(rewards)]
        part["position"], part["sample"], part["branch"] = key
        part["turn"], part["reward"] = np.arange(len(rewards)), rewards
        at += len(rewards)
    return rows


def set_turn_advantages(cfg: RunConfig, table: np.ndarray, turns: np.ndarray) -> dict[Key, np.ndarray]:
    """What each turn adds to the advantage of its tokens, by completion: float32, as many as it has ``turn_rewards``.

    ``c`` times the sum of the normalised rewards of the turn and of all later ones of its completion, where a reward
    is compared with those of all turns of its group: process supervision, DeepSeekMath, arXiv 2402.03300, section
    4.1.3. ``c`` is ``algorithm.turn_advantage_coef``. Fills in ``turn_advantage`` of ``table``, too.

    Args:
        turns: :func:`turn_rows` of all completions of ``table``, in any order.
    """
    turns = turns[np.lexsort((turns["turn"], turns["branch"], turns["sample"], turns["position"]))]
    rewards, groups = _tensor(turns["reward"]), turns["position"].tolist()
    scale = cfg.algorithm.scale_rewards
    assert scale != "gdpo", "a rule of the run file"
    each: np.ndarray = advantages(rewards, groups, "grpo", scale).numpy() * cfg.algorithm.turn_advantage_coef
    for episode in _runs(turns, "position", "sample"):
        each[episode] = each[episode][::-1].cumsum()[::-1]
    counts = table["turn_rewards"].tolist()
    found = {key: np.zeros(count, np.float32) for key, count in zip(keys_of(table), counts, strict=True)}
    for run in _runs(turns, "position", "sample", "branch"):
        found[Key(*turns[run][0].tolist()[:3])] = each[run]
    table["turn_advantage"] = [np.abs(value).max(initial=0.0) for value in found.values()]
    return found


def _runs(rows: np.ndarray, *names: str) -> list[slice]:
    """Where neighbours of ``rows`` have the same ``names``."""
    if not len(rows):
        return []
    changes = np.any([rows[name][1:] != rows[name][:-1] for name in names], axis=0)
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(rows)]
    return [slice(*pair) for pair in pairwise(bounds)]


def set_token_weights(cfg: RunConfig, schedule: BatchSchedule, table: np.ndarray) -> None:
    """Fill in ``token_weight`` for every optimizer step of a pass over the rollout."""
    a, size, whole = cfg.algorithm, schedule.global_batch_size, episodes(table)
    rollout_tokens = int(table["sampled"].sum())
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
    table["token_weight"] = whole["token_weight"][episode_of(table)]


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
