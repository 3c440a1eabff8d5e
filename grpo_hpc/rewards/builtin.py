"""Reward functions that come with the package."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.registry import reward

# A minus belongs to the number only where no word or bracket stands before it: 7-12 is a difference.
_NUMBER = re.compile(r"(?:(?<![\w)\]])[-\u2212])?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


@reward("exact_number", source="this package")
def exact_number(completions: list[str], answer: list[Any]) -> list[float | None]:
    """1 where the last number of the completion equals the column ``answer``, else 0.

    Thousands separators (1,234) and a minus sign are understood; 19.0 equals 19 and 19.5 does not.

    Args:
        completions: one text per completion.
        answer: the right integer per completion, as a number or as text; None gives no score.

    Raises:
        RewardError: an answer is no integer.
    """
    pairs = zip(completions, answer, strict=True)
    return [None if right is None else float(last_number(text) == _integer(right)) for text, right in pairs]


def last_number(text: str) -> Decimal | None:
    """The last number in ``text``, if there is one."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def _integer(answer: Any) -> Decimal:
    text = str(answer).strip()
    value = last_number(text) if _NUMBER.fullmatch(text) else None
    if value is None or value != value.to_integral_value():
        raise RewardError(f"the column 'answer' is {answer!r}, and exact_number compares integers only")
    return value
