"""Scoring completions with reward functions, trusting none of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.registry import OFFERED
from grpo_hpc.rewards.runner import RewardRunner
from grpo_hpc.rewards.worker_pool import Outcome, Task, WorkerPool

Policy = Literal["zero", "nan", "fail"]


@dataclass(frozen=True)
class RewardBatch:
    """What reward functions may ask for; every list has one entry per completion.

    Attributes:
        completions: texts.
        prompts: chats that the completions answer.
        columns: the data set's columns by name.
        finish_reasons: ``stop`` or ``length``.
        completion_ids: token ids.
        assistant_turns: texts with what the chat template began the answers with in front.
    """

    completions: list[str]
    prompts: list[list[dict[str, Any]]]
    columns: dict[str, list[Any]]
    finish_reasons: list[str]
    completion_ids: list[list[int]]
    assistant_turns: list[str]

    def only(self, index: int) -> dict[str, list[Any]]:
        """Everything about one completion, by the name a reward function knows it by."""
        everything = self.columns | {name: getattr(self, name) for name in OFFERED}
        return {name: values[index : index + 1] for name, values in everything.items()}


@dataclass(frozen=True)
class RewardTable:
    """Scores of a batch.

    Attributes:
        columns: by function name, one score per completion; None where the function gave none.
        totals: weighted sum per completion over the functions that gave a score; NaN where none did.
        failures: per completion, by function name: ``error``, ``timeout`` or ``killed``, a colon, and what happened.
        first: by function name, its first failure in words.
    """

    columns: dict[str, list[float | None]]
    totals: list[float]
    failures: list[dict[str, str]]
    first: dict[str, str]


def score(
    pool: WorkerPool | RewardRunner,
    names: Sequence[str],
    weights: Sequence[float] | None,
    policies: Mapping[str, Policy],
    batch: RewardBatch,
) -> RewardTable:
    """Call every function on every completion of ``batch`` and add up what they return.

    Args:
        names: of the functions' columns.
        weights: one per function, in their order; None means 1 each.
        policies: by name, what becomes of a completion that a function fails on: score 0, no score (``nan``, the
            default), or the end of the run.

    Raises:
        RewardError: a function failed whose policy is ``fail``.
    """
    count = len(batch.completions)
    outcomes = iter(pool.run([Task(name, batch.only(index)) for name in names for index in range(count)]))
    table = {name: [next(outcomes) for _ in range(count)] for name in names}
    first = {name: index for name in names if (index := _first_failure(table[name])) is not None}
    for name, index in first.items():
        if policies.get(name) == "fail":
            raise RewardError(_sentence(name, table[name][index], batch, index), table[name][index].hint)
    columns = {name: [_score(o, policies.get(name, "nan")) for o in column] for name, column in table.items()}
    return RewardTable(
        columns,
        [_total([column[index] for column in columns.values()], weights) for index in range(count)],
        [
            {name: f"{o.failure}: {_told(o, batch, index)}" for name in names if (o := table[name][index]).failure}
            for index in range(count)
        ],
        {name: _sentence(name, table[name][index], batch, index) for name, index in first.items()},
    )


def require_scores(
    names: Sequence[str],
    totals: Sequence[float],
    failures: Sequence[Mapping[str, str]],
    lacking: Sequence[frozenset[str]],
) -> None:
    """Check that a whole rollout can be learnt from: a bad completion is no reason to end a run, a bad function is.

    A function is judged by the rows that have what it needs. A rollout without such rows is no reason either.

    Args:
        lacking: per completion, the functions that a column of its row is null for.

    Raises:
        RewardError: a function raised an error on every completion, or no completion has a score.
    """
    for name in names:
        told = [failed.get(name, "") for failed, without in zip(failures, lacking, strict=True) if name not in without]
        if len(told) > 1 and all(text.startswith("error:") for text in told):
            raise RewardError(f"the reward function {name!r} failed on all {len(told)} completions; {told[0]}")
    if all(map(math.isnan, totals)) and not all(without.issuperset(names) for without in lacking):
        raise RewardError(
            f"none of {len(totals)} completions got a score: {', '.join(names)} returned None or nan, or failed",
            "A column that the function needs may be empty in these rows.",
        )


def _total(scores: Sequence[float | None], weights: Sequence[float] | None) -> float:
    if all(value is None for value in scores):
        return math.nan
    chosen = weights or [1.0] * len(scores)
    return sum(w * value for w, value in zip(chosen, scores, strict=True) if value is not None)


def _score(outcome: Outcome, policy: Policy) -> float | None:
    return 0.0 if outcome.failure and policy == "zero" else outcome.score


def _first_failure(outcomes: Sequence[Outcome]) -> int | None:
    return next((index for index, outcome in enumerate(outcomes) if outcome.failure), None)


def _told(outcome: Outcome, batch: RewardBatch, index: int) -> str:
    return f"{outcome.text} ({_sample(batch, index)}) {outcome.hint}".strip()


def _sentence(name: str, outcome: Outcome, batch: RewardBatch, index: int) -> str:
    return f"the reward function {name!r} failed on completion {index} ({_sample(batch, index)}): {outcome.text}"


def _sample(batch: RewardBatch, index: int) -> str:
    prompt = " ".join(str(batch.prompts[index][-1]["content"]).split())
    return f"prompt {_short(prompt)!r}, completion {_short(batch.completions[index])!r}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
