"""Scoring completions with reward functions, trusting none of them."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.registry import OFFERED, RewardFunction


@dataclass(frozen=True)
class RewardBatch:
    """What reward functions may ask for; every list has one entry per completion.

    Attributes:
        completions: texts.
        prompts: chats that the completions answer.
        columns: the data set's columns by name.
        finish_reasons: ``stop`` or ``length``.
        completion_ids: token ids.
    """

    completions: list[str]
    prompts: list[list[dict[str, Any]]]
    columns: dict[str, list[Any]]
    finish_reasons: list[str]
    completion_ids: list[list[int]]

    def keywords(self) -> dict[str, list[Any]]:
        """Everything, by the name a reward function knows it by."""
        return self.columns | {name: getattr(self, name) for name in OFFERED}


@dataclass(frozen=True)
class RewardTable:
    """Scores of a batch.

    Attributes:
        columns: by function name, one score per completion; None where the function gave none.
        totals: weighted sum per completion over the functions that gave a score.
    """

    columns: dict[str, list[float | None]]
    totals: list[float]


def score(functions: Mapping[str, RewardFunction], weights: Sequence[float] | None, batch: RewardBatch) -> RewardTable:
    """Call every function on ``batch`` and add up what they return.

    Args:
        weights: one per function, in their order; None means 1 each.

    Raises:
        RewardError: a function failed or returned something that is no reward, or a completion got no score at all.
    """
    columns = {name: _column(name, function, batch) for name, function in functions.items()}
    chosen = weights or [1.0] * len(columns)
    totals = []
    for index in range(len(batch.completions)):
        scores = [column[index] for column in columns.values()]
        if all(value is None for value in scores):
            raise RewardError(f"no reward function gave a score for {_sample(batch, index)}: all returned None")
        totals.append(sum(w * value for w, value in zip(chosen, scores, strict=True) if value is not None))
    return RewardTable(columns, totals)


def _column(name: str, function: RewardFunction, batch: RewardBatch) -> list[float | None]:
    keywords = _wanted(name, function, batch.keywords())
    try:
        returned = function(**keywords)
    except Exception as error:
        hint = error.hint if isinstance(error, RewardError) else _origin(error)
        what = f"{_first_failing(function, keywords, batch)}: {_describe(error)}"
        raise RewardError(f"the reward function {name!r} failed on {what}", hint) from error
    count = len(batch.completions)
    if not isinstance(returned, list | tuple):
        raise RewardError(f"the reward function {name!r} returned a {type(returned).__name__}, not a list of numbers")
    if len(returned) != count:
        raise RewardError(f"the reward function {name!r} returned {len(returned)} scores for {count} completions")
    return [_number(name, value, batch, index) for index, value in enumerate(returned)]


def _wanted(name: str, function: RewardFunction, offered: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Those of ``offered`` that the function declares, or all of them when it takes ``**columns``."""
    everything = inspect.signature(function).parameters.values()
    own = {parameter.name for parameter in everything if parameter.kind is parameter.KEYWORD_ONLY}
    parameters = [parameter for parameter in everything if parameter.name not in own]
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if required and parameter.name not in offered:
            close = difflib.get_close_matches(parameter.name, offered, n=1)
            meant = f"Did you mean {close[0]}? " if close else ""
            raise RewardError(
                f"the reward function {name!r} asks for {parameter.name!r}, which is no column of the data",
                f"{meant}There is: {', '.join(sorted(offered))}.",
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return {column: values for column, values in offered.items() if column not in own}
    return {parameter.name: offered[parameter.name] for parameter in parameters if parameter.name in offered}


def _first_failing(function: RewardFunction, keywords: dict[str, list[Any]], batch: RewardBatch) -> str:
    """Which completion makes the function fail: each is tried alone until one does."""
    for index in range(len(batch.completions)):
        try:
            function(**{name: values[index : index + 1] for name, values in keywords.items()})
        except Exception:
            return _sample(batch, index)
    return f"a batch of {len(batch.completions)} completions, though on none of them alone"


def _number(name: str, value: Any, batch: RewardBatch, index: int) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real):
        raise RewardError(
            f"the reward function {name!r} returned a {type(value).__name__} for {_sample(batch, index)}",
            "A score must be a number, or None for no score.",
        )
    number = float(value)
    if not math.isfinite(number):
        raise RewardError(
            f"the reward function {name!r} returned {number} for {_sample(batch, index)}",
            "A score must be finite; return None for no score.",
        )
    return number


def _sample(batch: RewardBatch, index: int) -> str:
    prompt = " ".join(str(batch.prompts[index][-1]["content"]).split())
    return f"completion {index} (prompt {_short(prompt)!r}, completion {_short(batch.completions[index])!r})"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(error: Exception) -> str:
    return error.message if isinstance(error, RewardError) else f"{type(error).__name__}: {error}"


def _origin(error: Exception) -> str:
    """Where the error was raised, for people who wrote the function."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"Raised at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}." if trace is not None else ""
