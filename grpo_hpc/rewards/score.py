"""Scoring completions with reward functions, trusting none of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.registry import OFFERED
from grpo_hpc.rewards.runner import RewardRunner, together
from grpo_hpc.rewards.worker_pool import Outcome, Task

OnFailure = Literal["zero", "nan", "fail"]


@dataclass(frozen=True)
class Answer:
    """What reward functions may ask for about one completion.

    Attributes:
        completion: its text.
        prompt: the chat that it answers.
        columns: the data set's columns by name.
        finish_reason: ``stop`` or ``length``.
        completion_ids: token ids.
        assistant_turn: the text with what the chat template began the answer with in front.
        messages: the whole chat, what the policy heard in it included.
    """

    completion: str
    prompt: list[dict[str, Any]]
    columns: dict[str, Any]
    finish_reason: str
    completion_ids: list[int]
    assistant_turn: str
    messages: list[dict[str, Any]]

    def offered(self) -> dict[str, list[Any]]:
        """All of it in lists of length 1, by the name that a reward function knows it by."""
        own = (self.completion, self.prompt, self.finish_reason, self.completion_ids, self.assistant_turn)
        everything = self.columns | dict(zip(OFFERED, (*own, self.messages), strict=True))
        return {name: [value] for name, value in everything.items()}


@dataclass(frozen=True)
class Score:
    """What reward functions said of a completion.

    Attributes:
        rewards: by function name; None where the function gave none.
        total: their weighted sum over the functions that gave one; NaN where none did.
        failures: by function name: ``error``, ``timeout`` or ``killed``, a colon, and what happened.
    """

    rewards: dict[str, float | None]
    total: float
    failures: dict[str, str]


def score(
    runner: RewardRunner,
    names: Sequence[str],
    weights: Sequence[float] | None,
    on_failure: Mapping[str, OnFailure],
    answer: Answer,
    given: Mapping[str, float | None] = MappingProxyType({}),
) -> Future[Score]:
    """Let workers call every function on ``answer``, and add up what they return.

    Args:
        names: of the functions' columns.
        weights: one per function, in their order; None means 1 each.
        on_failure: by name, what becomes of a completion that a function fails on: score 0, no score (``nan``, the
            default), or the end of the run.
        given: by name, what is known already: no function gives it.

    Returns:
        A future. Its error is a ``RewardError`` where a function failed whose failures end the run.
    """
    offered, called = answer.offered(), [name for name in names if name not in given]

    def added_up(outcomes: Sequence[Outcome]) -> Score:
        outcome_of = dict(zip(called, outcomes, strict=True))
        for name, outcome in outcome_of.items():
            if outcome.failure and on_failure.get(name) == "fail":
                raise RewardError(f"the reward function {name!r} failed; {_told(outcome, answer)}", outcome.hint)
        asked = {name: _reward(outcome, on_failure.get(name, "nan")) for name, outcome in outcome_of.items()}
        rewards = {name: given[name] if name in given else asked[name] for name in names}
        failures = {name: f"{_told(o, answer)} {o.hint}".strip() for name, o in outcome_of.items() if o.failure}
        return Score(rewards, _total(list(rewards.values()), weights), failures)

    return together([runner.submit([Task(name, offered) for name in called])], lambda made: added_up(made[0]))


def first_failures(failures: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """By function, a sentence about the first completion that it failed on."""
    first = {name: text for failed in reversed(failures) for name, text in failed.items()}
    return {name: f"the reward function {name!r} failed; {text}" for name, text in first.items()}


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


def _reward(outcome: Outcome, on_failure: OnFailure) -> float | None:
    return 0.0 if outcome.failure and on_failure == "zero" else outcome.score


def _told(outcome: Outcome, answer: Answer) -> str:
    prompt = " ".join(str(answer.prompt[-1]["content"]).split())
    where = f"prompt {_short(prompt)!r}, completion {_short(answer.completion)!r}"
    return f"{outcome.failure}: {outcome.text} ({where})"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
