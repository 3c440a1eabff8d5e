"""What a micro-batch reports: sums and maxima, so that totals are exact whatever the split.

Shapes: N scored tokens of one micro-batch in packing order, S completions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from grpo_hpc.algo.kl import k3
from grpo_hpc.algo.objective import Evaluated, TokenData

SUMS = (
    *("loss", "tokens", "samples", "kl", "entropy", "low", "high", "ratio_error", "kept", "stale"),
    *("abs", "k1", "k3", "chi2", "chi2_sequence", "log_ppl", "rollout_log_ppl", "ppl", "rollout_ppl", "ppl_ratio"),
    *("log_ppl_abs", "weight", "weight_square", "outside"),
)
MAXIMA = ("entropy", "minus_entropy", "ratio", "minus_ratio", "log_ppl_diff", "minus_log_ppl_diff")


def measure(
    result: Evaluated, data: TokenData, token_weights: Tensor, logprobs: Tensor, entropy: Tensor
) -> tuple[Tensor, Tensor]:
    """Values of ``SUMS`` and ``MAXIMA`` for one micro-batch, in float64.

    The mismatch terms compare the policy that the update started from with the engine: ``d = log old - log rollout``,
    ``l`` its mean over a completion.
    """
    sequences, none = data.sequences, torch.zeros_like(logprobs)
    policy, weight = result.policy, result.rollout_weight
    old, sampled = result.old.double(), data.rollout_logprobs.double()
    d = old - sampled
    log_ppl, rollout_log_ppl = -sequences.mean(old), -sequences.mean(sampled)
    difference = rollout_log_ppl - log_ppl  # mean log ratio of a completion
    entropies = sequences.mean(entropy.detach())
    sums = {
        "loss": result.total.detach() * token_weights,
        "tokens": torch.ones_like(none),
        "samples": torch.ones_like(difference),
        "kl": result.kl,
        "entropy": entropy.detach(),
        "low": none if policy.low is None else policy.low,
        "high": none if policy.high is None else policy.high,
        "ratio_error": (result.ratio - 1.0).abs(),
        "kept": result.kept,
        "stale": sequences.mean(result.stale.to(none.dtype)),
        "abs": d.abs(),
        "k1": -d,
        "k3": k3(sampled, old),
        "chi2": (2.0 * d).exp() - 1.0,
        "chi2_sequence": (2.0 * difference).exp() - 1.0,
        "log_ppl": log_ppl,
        "rollout_log_ppl": rollout_log_ppl,
        "ppl": log_ppl.exp(),
        "rollout_ppl": rollout_log_ppl.exp(),
        "ppl_ratio": (-difference).exp(),
        "log_ppl_abs": difference.abs(),
        "weight": none if weight is None else weight,
        "weight_square": none if weight is None else weight.double() ** 2,
        "outside": none if result.outside is None else result.outside,
    }
    maxima = {
        "entropy": entropies,
        "minus_entropy": -entropies,
        "ratio": result.ratio,
        "minus_ratio": -result.ratio,
        "log_ppl_diff": -difference,
        "minus_log_ppl_diff": difference,
    }
    return (
        torch.stack([sums[name].double().sum() for name in SUMS]),
        torch.stack([maxima[name].double().max() for name in MAXIMA]),
    )


def step_values(sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an optimizer step from the totals over all micro-batches and ranks.

    Means are over tokens, except where a metric's name says that it is of completions.
    """
    tokens, samples = max(sums["tokens"], 1.0), max(sums["samples"], 1.0)
    values = {
        "loss": sums["loss"],
        "kl": sums["kl"] / tokens,
        "tokens/scored": sums["tokens"],
        "entropy": sums["entropy"] / tokens,
        "entropy/completion_max": maxima["entropy"],
        "entropy/completion_min": -maxima["minus_entropy"],
        "ratio/mean_abs_error": sums["ratio_error"] / tokens,
        "ratio/max": maxima["ratio"],
        "ratio/min": -maxima["minus_ratio"],
        "clip_ratio/low_mean": sums["low"] / tokens,
        "clip_ratio/high_mean": sums["high"] / tokens,
        "clip_ratio/region_mean": (sums["low"] + sums["high"]) / tokens,
        "mask/tokens_kept": sums["kept"] / tokens,
        "mask/stale_completions": sums["stale"] / samples,
    }
    return values | _mismatch(sums, maxima, tokens, samples) | _rollout_weights(sums, tokens)


def _mismatch(
    sums: Mapping[str, float], maxima: Mapping[str, float], tokens: float, samples: float
) -> dict[str, float]:
    return {
        "mismatch/logprob_abs_diff": sums["abs"] / tokens,
        "mismatch/kl": sums["k1"] / tokens,
        "mismatch/k3_kl": sums["k3"] / tokens,
        "mismatch/chi2_token": sums["chi2"] / tokens,
        "mismatch/chi2_completion": sums["chi2_sequence"] / samples,
        "mismatch/training_ppl": sums["ppl"] / samples,
        "mismatch/rollout_ppl": sums["rollout_ppl"] / samples,
        "mismatch/ppl_ratio": sums["ppl_ratio"] / samples,
        "mismatch/training_log_ppl": sums["log_ppl"] / samples,
        "mismatch/rollout_log_ppl": sums["rollout_log_ppl"] / samples,
        "mismatch/log_ppl_abs_diff": sums["log_ppl_abs"] / samples,
        "mismatch/log_ppl_diff_max": maxima["log_ppl_diff"],
        "mismatch/log_ppl_diff_min": -maxima["minus_log_ppl_diff"],
    }


def _rollout_weights(sums: Mapping[str, float], tokens: float) -> dict[str, float]:
    """Of the correction's weights; nothing without a correction."""
    if not sums["weight_square"] and not sums["outside"]:
        return {}
    return {
        "rollout_correction/weight_mean": sums["weight"] / tokens,
        "rollout_correction/effective_sample_size": sums["weight"] ** 2 / max(tokens * sums["weight_square"], 1e-300),
        "rollout_correction/outside_bounds": sums["outside"] / tokens,
    }
