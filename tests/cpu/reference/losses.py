"""The objective of one optimizer step, completion by completion.

Every loss is a function of ``x``, the log-probabilities being trained, and of ``frozen``, the same numbers where the
paper stops the gradient: so a difference quotient in ``x`` alone is the gradient that the paper means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Sample:
    """One completion of T tokens."""

    group: str
    advantage: float
    old: np.ndarray
    ref: np.ndarray
    rollout: np.ndarray
    entropy: np.ndarray
    truncated: bool = False


@dataclass
class Options:
    loss: str = "grpo"
    level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    tau_pos: float = 1.0
    tau_neg: float = 1.05
    real_tau: float = 0.5
    fipo_decay_rate: float = 32.0
    fipo_clip_range: float = 0.2
    fipo_clip_high_only: bool = True
    fipo_safety_threshold: float | None = 4.0
    beta: float = 0.0
    kl: str = "k3"
    entropy_coef: float = 0.0
    correction: str | None = None
    upper: float = 2.0
    lower: float = 0.0
    stale_delta: float | None = None
    top_entropy: float = 1.0
    overlong_filter: bool = False
    longest: int = 16


def weight_of(level, x, frozen, old, t):
    """Importance weight of token ``t``."""
    if level == "token":
        return math.exp(x[t] - old[t])
    if level == "sequence":
        return math.exp(np.mean(x - old))
    return math.exp(np.mean(frozen - old) + x[t] - frozen[t])


def surrogate(rho, a, o):
    high = o.epsilon if o.epsilon_high is None else o.epsilon_high
    free = rho if o.delta is None else min(rho, o.delta)
    return -min(free * a, min(max(rho, 1 - o.epsilon), 1 + high) * a)


def policy_token(o, s, x, frozen, t):
    rho = weight_of(o.level, x, frozen, s.old, t)
    if o.loss in ("grpo", "bnpo", "dr_grpo", "dapo"):
        return surrogate(rho, s.advantage, o)
    if o.loss == "cispo":
        stopped = weight_of(o.level, frozen, frozen, s.old, t)
        cap = 5.0 if o.epsilon_high is None else o.epsilon_high
        return -min(stopped, cap) * s.advantage * x[t]
    if o.loss == "sapo":
        tau = o.tau_pos if s.advantage > 0 else o.tau_neg
        return -(4 / tau) / (1 + math.exp(-tau * (rho - 1))) * s.advantage
    if o.loss == "fipo":
        gamma, future = 2 ** (-1 / o.fipo_decay_rate), 0.0
        for k in range(t, len(x)):
            step = frozen[k] - s.old[k]
            if o.delta is None or math.exp(step) <= o.delta:
                future += gamma ** (k - t) * step
        low = 1.0 if o.fipo_clip_high_only else 1 - o.fipo_clip_range
        factor = min(max(math.exp(future), low), 1 + o.fipo_clip_range)
        risky = s.advantage < 0 and math.exp(frozen[t] - s.old[t]) > (o.fipo_safety_threshold or math.inf)
        return surrogate(rho, s.advantage, o) * (min(max(factor, 0.8), 1.0) if risky else factor)
    raise ValueError(o.loss)


def kl_token(o, x, ref):
    d = ref - x
    return {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[o.kl]


def correction_token(o, s, t):
    if o.correction is None:
        return 1.0
    log = s.old - s.rollout
    token, whole = math.exp(log[t]), math.exp(np.mean(log))
    bounded = token if o.correction.startswith("token") else whole
    if o.correction.endswith("truncate"):
        return min(max(bounded, o.lower), o.upper)
    return token if o.lower <= bounded <= o.upper else 0.0


def is_stale(o, s, frozen):
    return o.stale_delta is not None and s.advantage < 0 and np.mean(s.rollout - frozen) > o.stale_delta


def entropy_quantile(o, samples):
    if o.top_entropy == 1.0:
        return -math.inf
    return np.quantile(np.concatenate([s.entropy for s in samples if not left_out(o, s)]), 1 - o.top_entropy)


def left_out(o, s):
    return o.overlong_filter and s.truncated


def denominator(o, samples, s):
    """What a token of ``s`` is divided by."""
    if o.loss in ("grpo", "sapo"):
        return len(samples) * len(s.old)
    if o.loss == "dr_grpo":
        return len(samples) * o.longest
    return sum(len(other.old) for other in samples if not left_out(o, other))


def real_groups(o, samples, xs):
    """REAL: mean over all groups of the loss of those that have both labels."""
    groups = {s.group for s in samples if not left_out(o, s)}
    total = 0.0
    for group in groups:
        members = [
            (np.mean(x - s.old), s.advantage)
            for s, x in zip(samples, xs, strict=True)
            if s.group == group and not left_out(o, s)
        ]
        positive = [score for score, a in members if a > 0]
        negative = [score for score, a in members if a <= 0]
        if positive and negative:
            total += math.log(1 + sum(math.exp(score / o.real_tau) for score in negative))
            total += math.log(1 + sum(math.exp(-score / o.real_tau) for score in positive))
    return total / len(groups)


def objective(o, samples, xs, frozen):
    """The loss of the step."""
    threshold = entropy_quantile(o, samples)
    total = real_groups(o, samples, xs) if o.loss == "real" else 0.0
    for s, x, stopped in zip(samples, xs, frozen, strict=True):
        if left_out(o, s):
            continue
        for t in range(len(x)):
            value = 0.0
            if o.loss != "real" and s.entropy[t] >= threshold and not is_stale(o, s, stopped):
                value = policy_token(o, s, x, stopped, t) * correction_token(o, s, t)
            if o.beta:
                value += o.beta * kl_token(o, x[t], s.ref[t])
            value -= o.entropy_coef * s.entropy[t]
            total += value / denominator(o, samples, s)
    return total


def gradient(o, samples, xs, step=1e-6):
    """Central differences in every log-probability, with the stopped ones held still."""
    frozen, slopes = [x.copy() for x in xs], []
    for x in xs:
        slope = np.zeros_like(x)
        for t in range(len(x)):
            kept = x[t]
            x[t] = kept + step
            above = objective(o, samples, xs, frozen)
            x[t] = kept - step
            below = objective(o, samples, xs, frozen)
            x[t] = kept
            slope[t] = (above - below) / (2 * step)
        slopes.append(slope)
    return slopes
