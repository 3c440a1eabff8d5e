"""Rules of the section ``algorithm``: which keys the chosen loss and options leave without a meaning.

The losses and estimators are those of the registries in :mod:`grpo_hpc.algo`, which import no torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from grpo_hpc.algo.estimators import ESTIMATORS
from grpo_hpc.algo.losses import LOSSES
from grpo_hpc.config.problems import Problem
from grpo_hpc.config.sections import Algorithm, RunConfig

SCALED_DIFFERENTLY = ("bnpo", "dapo", "cispo", "fipo")
"""Losses whose denominators are not exact in ms-swift."""

_NOT_FOR_CLASSIFIERS = (
    "importance_sampling_level",
    "advantage_estimator",
    "scale_rewards",
    "turn_advantage_coef",
    "rollout_importance_sampling_mode",
    "off_policy_sequence_mask_delta",
    "top_entropy_quantile",
)


def meaningless(cfg: RunConfig) -> dict[str, str]:
    """Keys of the section that have no meaning in this run, each with the reason."""
    a = cfg.algorithm
    found = _of_other_losses(a)
    if a.beta == 0:
        found |= dict.fromkeys(("kl_estimator", "kl_in_reward", "sync_ref_model"), "has no meaning while beta is 0")
    elif a.kl_in_reward:
        found["kl_estimator"] = "has no meaning beside kl_in_reward, which always takes k1"
    if not a.sync_ref_model:
        off = "has no meaning without sync_ref_model"
        found |= dict.fromkeys(("ref_model_sync_steps", "ref_model_mixup_alpha"), off)
    if not a.dynamic_sample:
        found["max_resample_times"] = "has no meaning without dynamic_sample"
    if a.rollout_importance_sampling_mode is None:
        off = "has no meaning without rollout_importance_sampling_mode"
        found |= dict.fromkeys(("rollout_importance_sampling_threshold", "rollout_importance_sampling_min"), off)
    if a.scale_rewards == "gdpo":
        found["advantage_estimator"] = "has no meaning with scale_rewards gdpo, which has a baseline of its own"
    return found


def _of_other_losses(a: Algorithm) -> dict[str, str]:
    if a.loss_type not in LOSSES:
        return {}
    loss, found = LOSSES[a.loss_type], {}
    users: dict[str, list[str]] = {}
    for name, other in LOSSES.items():
        for option in other.options:
            users.setdefault(option, []).append(name)
    for option, names in users.items():
        if option not in loss.options:
            found[option] = f"has no meaning with loss_type {loss.name}; it belongs to {_listed(names)}"
    if loss.classifies:
        only_signs = f"has no meaning with loss_type {loss.name}, which takes nothing but the signs of advantages"
        found |= dict.fromkeys(_NOT_FOR_CLASSIFIERS, only_signs)
    if loss.name not in SCALED_DIFFERENTLY:
        found["loss_scaling"] = f"has no meaning with loss_type {loss.name}, which ms-swift scales exactly too"
    return found


def problems(cfg: RunConfig) -> list[Problem]:
    """Broken rules of the section."""
    a, found = cfg.algorithm, []
    found += _known("loss_type", a.loss_type, LOSSES) + _known("advantage_estimator", a.advantage_estimator, ESTIMATORS)
    if a.loss_type in LOSSES:
        found += _bounds(a)
    if a.scale_rewards == "gdpo" and a.kl_in_reward:
        text = "cannot be combined with scale_rewards gdpo, which has no total reward to subtract the KL from"
        found.append(Problem("algorithm.kl_in_reward", text))
    if a.turn_advantage_coef:
        found += _of_turns(cfg)
    if a.loss_type == "bnpo" and a.loss_scaling == "ms_swift" and cfg.batch.max_tokens_per_micro_batch is not None:
        text = "needs batch.micro_batch_size for loss_type bnpo: ms-swift averages over micro-batches of that size"
        found.append(Problem("algorithm.loss_scaling", text))
    return found + _part_of_the_vocabulary(cfg)


def _part_of_the_vocabulary(cfg: RunConfig) -> list[Problem]:
    """The engine's log-probabilities are of what it sampled from, the trainer's of the whole vocabulary."""
    a, cuts = cfg.algorithm, cfg.rollout.reshaped_by
    if not cuts:
        return []
    text = (
        f"compares vLLM's log-probabilities with the trainer's, which differ under {' and '.join(cuts)} even for equal "
        "weights: vLLM's are of the distribution that is sampled from, the trainer's of the softmax of all logits; "
        "with a part of the vocabulary the difference holds minus the logarithm of the mass that was kept. Sample from "
        f"all tokens (leave out {_listed([f'rollout.{cut.split()[0]}' for cut in cuts])}), or leave this key out"
    )
    keys = ("rollout_importance_sampling_mode", "off_policy_sequence_mask_delta")
    return [Problem(f"algorithm.{key}", text) for key in keys if getattr(a, key) is not None]


def _of_turns(cfg: RunConfig) -> list[Problem]:
    key, found = "algorithm.turn_advantage_coef", list[Problem]()
    if cfg.rollout.environment is None:
        text = "needs rollout.environment: without one a completion is a single turn, and nothing rewards turns"
        found.append(Problem(key, text))
    if cfg.algorithm.scale_rewards == "gdpo":
        text = "cannot be combined with scale_rewards gdpo, which has no one deviation that turns could be divided by"
        found.append(Problem(key, text))
    return found


def _bounds(a: Algorithm) -> list[Problem]:
    found: list[Problem] = []
    high = a.epsilon if a.epsilon_high is None else a.epsilon_high
    if a.loss_type == "cispo":
        if a.epsilon_high is not None and a.epsilon_high < 1:
            text = f"is the largest ratio itself with loss_type cispo and must be at least 1, got {high:g}; 5 is usual"
            found.append(Problem("algorithm.epsilon_high", text))
        return found
    if high < a.epsilon and "epsilon" in LOSSES[a.loss_type].options:
        text = f"must be at least algorithm.epsilon = {a.epsilon:g}, got {high:g}"
        found.append(Problem("algorithm.epsilon_high", text))
    if a.delta is not None and "delta" in LOSSES[a.loss_type].options and a.delta <= 1 + high:
        text = f"must be above the clip range: 1 + epsilon_high = {1 + high:g}, got {a.delta:g}"
        found.append(Problem("algorithm.delta", text))
    return found


def _known(key: str, value: str, registry: Iterable[str]) -> list[Problem]:
    from grpo_hpc.config.keys import closest

    names = list(registry)
    if value in names:
        return []
    near = closest(value, names)
    meant = f"did you mean {near}?" if near else f"there is {_listed(names)}"
    return [Problem(f"algorithm.{key}", f"there is no {value!r}; {meant}")]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
