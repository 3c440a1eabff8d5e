"""Advantages, completion by completion. A reward of None takes part in nothing."""

from __future__ import annotations

import statistics

EPSILON = 1e-4


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def known(values):
    return [v for v in values if v is not None]


def group_of(values, prompts, i):
    return [v for v, p in zip(values, prompts, strict=True) if p == prompts[i]]


def centred(rewards, prompts, estimator):
    out = []
    for i, reward in enumerate(rewards):
        if reward is None:
            out.append(None)
            continue
        group = known(group_of(rewards, prompts, i))
        if estimator == "rloo":  # minus the mean of the others
            others = (sum(group) - reward) / (len(group) - 1) if len(group) > 1 else reward
            out.append(reward - others)
        else:
            out.append(reward - statistics.fmean(group))
    return out


def advantages(rewards, prompts, estimator, scale):
    differences = centred(rewards, prompts, estimator)
    spread = differences if estimator == "reinforce_plus_plus" else rewards
    out = []
    for i, value in enumerate(differences):
        if value is None:
            out.append(0.0)
        elif scale == "none":
            out.append(value)
        elif scale == "group":
            out.append(value / (deviation(known(group_of(spread, prompts, i))) + EPSILON))
        else:
            out.append(value / (deviation(known(spread)) + EPSILON))
    return out


def turn_advantages(turns, positions, scale, coef):
    """Process supervision: ``turns[i]`` are the rewards of completion i's turns, None where there is none."""
    out = []
    for rewards, position in zip(turns, positions, strict=True):
        group = known([r for other, p in zip(turns, positions, strict=True) if p == position for r in other])
        pool = {"group": group, "batch": known([r for other in turns for r in other])}.get(scale)
        divisor = 1.0 if pool is None else deviation(pool) + EPSILON
        normalised = [0.0 if r is None else (r - statistics.fmean(group)) / divisor for r in rewards]
        out.append([coef * sum(normalised[k:]) for k in range(len(normalised))])
    return out


def gdpo(columns, weights, prompts):
    """Equations 4 and 5 of GDPO, the subtraction of the batch mean included; ``columns[f][i]``."""
    count = len(prompts)
    totals = [0.0] * count
    for column, weight in zip(columns, weights, strict=True):
        for i in range(count):
            if column[i] is not None:
                group = known(group_of(column, prompts, i))
                totals[i] += weight * (column[i] - statistics.fmean(group)) / (deviation(group) + EPSILON)
    scored = [any(column[i] is not None for column in columns) for i in range(count)]
    pool = [t for t, s in zip(totals, scored, strict=True) if s]
    mean, spread = statistics.fmean(pool), deviation(pool)
    return [(t - mean) / (spread + EPSILON) if s else 0.0 for t, s in zip(totals, scored, strict=True)]
