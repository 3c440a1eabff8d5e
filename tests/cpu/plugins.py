"""Reward functions that tests name as files."""

from __future__ import annotations

import os


def early_letters(completion_ids: list[list[int]]) -> list[float]:
    """Share of tokens below 128: something that any model can learn, and that varies within a group."""
    return [sum(token < 128 for token in ids) / len(ids) for ids in completion_ids]


def raises(completions: list[str]) -> list[float]:
    raise ZeroDivisionError("this reward divides by nothing")


def not_a_number(completions: list[str]) -> list[float]:
    return [float("nan")] * len(completions)


def ends(completion_ids: list[list[int]], finish_reasons: list[str]) -> list[float]:
    """The same for completions that end by themselves, and less for those that are cut off."""
    scores = early_letters(completion_ids)
    return [score + (reason == "stop") for score, reason in zip(scores, finish_reasons, strict=True)]


def sometimes(completion_ids: list[list[int]], answer: list[int]) -> list[float]:
    """Differs within the group of every second prompt."""
    return [(ids[0] % 7 + len(ids)) * (n % 2) for ids, n in zip(completion_ids, answer, strict=True)]


def rarely(completion_ids: list[list[int]], answer: list[int]) -> list[float]:
    """Differs within the groups of three prompts in twelve."""
    return [(ids[0] % 7 + len(ids)) * (n % 4 == 0) for ids, n in zip(completion_ids, answer, strict=True)]


def writes(assistant_turns: list[str], written: list[str | None]) -> list[float | None]:
    """Notes every call in the file that the row names, if it names one."""
    if written[0] is None:
        return [None]
    with open(written[0], "a") as file:  # noqa: PTH123
        file.writelines(f"{text}\n" for text in assistant_turns)
    return [float(len(text)) for text in assistant_turns]


def counts(completion_ids: list[list[int]]) -> list[float]:
    """The share of small tokens; notes every call."""
    with open(os.environ["CALLS"], "a") as calls:  # noqa: PTH123
        calls.writelines(f"{ids}\n" for ids in completion_ids)
    return early_letters(completion_ids)
