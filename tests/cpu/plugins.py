"""Reward functions that tests name as files."""

from __future__ import annotations


def early_letters(completion_ids: list[list[int]]) -> list[float]:
    """Share of tokens below 128: something that any model can learn, and that varies within a group."""
    return [sum(token < 128 for token in ids) / len(ids) for ids in completion_ids]


def raises(completions: list[str]) -> list[float]:
    raise ZeroDivisionError("this reward divides by nothing")


def not_a_number(completions: list[str]) -> list[float]:
    return [float("nan")] * len(completions)
