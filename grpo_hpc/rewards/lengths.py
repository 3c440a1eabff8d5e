"""Rewards that look at the length of a completion, in tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from grpo_hpc.errors import ConfigError
from grpo_hpc.rewards.accuracy import accuracy
from grpo_hpc.rewards.registry import reward

Positive = Annotated[int, Field(ge=1)]


def _check_cache(values: Mapping[str, Any]) -> None:
    limit, cache = values["max_completion_length"], values["soft_cache_length"]
    if cache >= limit:
        raise ConfigError(
            f"soft_overlong: soft_cache_length {cache} is not below max_completion_length {limit}",
            f"It is the part of the limit that is punished; the longest that has a meaning is {limit - 1}.",
        )


@reward("soft_overlong", source="DAPO, arXiv 2503.14476, equation 13", check=_check_cache)
def soft_overlong(
    completion_ids: list[list[int]], *, soft_cache_length: Positive, max_completion_length: Positive
) -> list[float | None]:
    """0 for short completions, then linearly down to -1 over the last ``soft_cache_length`` tokens before the limit.

    With length n, limit L and cache C < L: min(0, max(-1, (L - C - n) / C)).
    """
    limit, cache = max_completion_length, soft_cache_length
    return [min(0.0, max(-1.0, (limit - cache - len(ids)) / cache)) for ids in completion_ids]


@reward("cosine", source="Yeo et al., arXiv 2502.03373")
def cosine(
    assistant_turns: list[str],
    completion_ids: list[list[int]],
    solution: list[Any],
    *,
    max_completion_length: Positive,
    min_len_value_correct: float = 1.0,
    max_len_value_correct: float = 0.5,
    min_len_value_wrong: float = -0.5,
    max_len_value_wrong: float = 0.0,
) -> list[float | None]:
    """Short right answers earn more than long ones; long wrong answers lose less than short ones.

    With length n and limit L: v_L + (v_0 - v_L) (1 + cos(pi n / L)) / 2, where v_0 and v_L are the values of
    ``min_len`` and ``max_len`` for right or wrong answers; right is what :func:`accuracy` gives 1. No score where
    accuracy has none. Beyond L the value stays v_L.
    """
    scores: list[float | None] = []
    for right, ids in zip(accuracy(assistant_turns, solution), completion_ids, strict=True):
        if right is None:
            scores.append(None)
            continue
        begin = min_len_value_correct if right else min_len_value_wrong
        end = max_len_value_correct if right else max_len_value_wrong
        done = min(1.0, len(ids) / max_completion_length)
        scores.append(end + (begin - end) * (1 + math.cos(math.pi * done)) / 2)
    return scores
