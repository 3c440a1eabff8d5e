"""What the plan of the next run can take from this one: how long its sequences were, and how fast each phase was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from grpo_hpc.config import RunConfig
from grpo_hpc.errors import EnvironmentProblem, PlanError
from grpo_hpc.observe.completions import read_completions, steps_with_completions
from grpo_hpc.observe.history import History, finite
from grpo_hpc.plan.measured.like_run import pace_of
from grpo_hpc.plan.measured.pace import Lengths, Pace
from grpo_hpc.report.planned_and_measured import counted_steps, measured_seconds
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.sweep import one_run_at

_FILES = 40  # of completions that are read, spread over the run
_MOST_S, _MOST_TOKENS = 1e7, 10**8  # beyond these no record is of a run
_SHARES = 200  # equal parts of the completions that are told apart by their length


def pace_of_run(path: str) -> Pace:
    """The pace of the run in ``path``, also while it works.

    Raises:
        ConfigError: there is no run.
        PlanError: it has made no step, or nothing can be learned from it.
    """
    run = one_run_at(path)
    cfg, history = run.config(), History.read(run.metrics)
    seconds = {phase: spent for phase, spent in measured_seconds(history).items() if 0 <= spent < _MOST_S}
    if not seconds:
        raise PlanError(f"the run {cfg.name} has not made one optimizer step, so there is nothing to plan like")
    completions = _recorded(run, counted_steps(history)) or _reported(history)
    if not completions:
        raise PlanError(f"the run {cfg.name} tells no lengths of completions, so there is nothing to plan like")
    return pace_of(cfg, seconds, Lengths(_prompt(cfg, history, fmean(completions)), tuple(completions)))


def _recorded(run: RunDir, counted: Sequence[int]) -> list[float]:
    """Lengths of completions from their files, in ascending order; those that are damaged are passed over."""
    steps = [step for step in steps_with_completions(run.completions) if not counted or step >= counted[0]]
    found: list[int] = []
    for step in steps[:: max(1, len(steps) // _FILES)]:
        try:
            rows = [row.get("tokens") for row in read_completions(run.completions, step)]
        except EnvironmentProblem:
            continue
        found += [tokens for tokens in rows if type(tokens) is int and 0 < tokens < _MOST_TOKENS]
    return _shares(sorted(found))


def _shares(lengths: Sequence[int]) -> list[float]:
    """``lengths`` in equal parts: the mean of each, and of the last the longest, for which everybody waits."""
    count = min(_SHARES, len(lengths))
    edges = [part * len(lengths) // count for part in range(count + 1)] if count else []
    means = [fmean(lengths[begin:end]) for begin, end in pairwise(edges)]
    return [*means[:-1], float(lengths[-1])] if means else []


def _reported(history: History) -> list[float]:
    """Lengths from metrics alone: from the shortest to the longest along the power that has the mean that there was."""
    found = [finite(history.series(f"completions/{name}_length").values()) for name in ("min", "mean", "max")]
    if not all(found):
        return []
    low, mean, high = (fmean(values) for values in found)
    if not 0 <= low <= mean <= high < _MOST_TOKENS or not high:
        return []
    power = (high - low) / (mean - low) - 1 if mean > low else 1.0
    return [low + (high - low) * ((part + 0.5) / _SHARES) ** power for part in range(_SHARES - 1)] + [high]


def _prompt(cfg: RunConfig, history: History, completion: float) -> int | None:
    """Mean length of prompts: what sequences that were trained had beyond their completions; None where unknown."""
    course: Mapping[int, float | None] = history.series("throughput/train_tokens_per_s")
    train, alike = history.series("time/train"), history.series("reward/zero_variance_groups")
    taught = [1.0 - share for share in finite(alike.values())] if not cfg.algorithm.beta else [1.0]
    tokens = [speed * spent for step, speed in course.items() if speed and (spent := train.get(step))]
    trained = cfg.batch.global_batch_size * (fmean(taught) if taught else 1.0)
    if not tokens or not 1 <= trained <= cfg.batch.global_batch_size:
        return None
    found = fmean(tokens) / trained - completion
    return round(found) if 1 <= found < _MOST_TOKENS else None
