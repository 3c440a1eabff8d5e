"""Is the answer right, mathematically."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.registry import reward

_LONGEST_ANSWER = 10_000  # characters at the end of a text that are searched for an answer


@reward("accuracy", source="math-verify (github.com/huggingface/Math-Verify)")
def accuracy(assistant_turns: list[str], solution: list[Any]) -> list[float | None]:
    r"""1 where the answer equals the column ``solution`` mathematically, else 0; needs the package math-verify.

    The answer is what the last <answer>...</answer> holds, or else what math-verify finds in the text: \boxed{},
    LaTeX between dollars, or a number. No score where ``solution`` holds no expression that can be read. The library's
    own time limit needs the main thread, so it is off: the worker pool limits the time of each completion.

    Raises:
        RewardError: math-verify is not installed.
    """
    return [_right(text, right) for text, right in zip(assistant_turns, solution, strict=True)]


def _right(text: str, solution: Any) -> float | None:
    gold = _gold(str(solution))
    if solution is None or not gold:
        return None
    return float(_equal(list(gold), _parse(_answer(text))))


def _answer(text: str) -> str:
    before, opening, last = text.rpartition("<answer>")
    return (last.partition("</answer>")[0] if opening else before + last)[-_LONGEST_ANSWER:]


def _parse(text: str) -> list[Any]:
    return list(_math_verify().parse(text, parsing_timeout=None, raise_on_error=False))


def _equal(gold: list[Any], answer: list[Any]) -> bool:
    return bool(_math_verify().verify(gold, answer, timeout_seconds=None, raise_on_error=False))


@lru_cache(maxsize=4096)
def _gold(solution: str) -> tuple[Any, ...]:
    """``solution`` read as LaTeX, with or without dollars; a bare expression would else be read as its last number."""
    text = _answer(solution)
    marked = any(mark in text for mark in ("$", r"\boxed", r"\(", r"\["))
    return tuple(_parse(text) if marked else _parse(f"${text}$") or _parse(text))


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    try:
        import math_verify
    except ModuleNotFoundError:
        raise RewardError("the reward accuracy needs math-verify", "pip install 'grpo-hpc[rewards]'") from None
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns about every time limit that is off
    return math_verify
