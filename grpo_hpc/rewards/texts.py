"""Rewards that look at the form of the text alone."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

from pydantic import Field

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.registry import reward


@reward("format", source="DeepSeek-R1, arXiv 2501.12948, section 2.2.2")
def format_reward(assistant_turns: list[str]) -> list[float | None]:
    """1 where the whole text is <think>...</think> and then <answer>...</answer>, each tag once, else 0.

    White space may stand before, between and after the two. The chat template may have written the beginning.
    """
    return [float(_is_think_answer(text)) for text in assistant_turns]


def _is_think_answer(text: str) -> bool:
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if any(text.count(tag) != 1 for tag in tags):
        return False
    before, rest = text.split(tags[0])
    if any(tag not in rest for tag in tags[1:]):
        return False
    _, rest = rest.split(tags[1])
    if tags[2] not in rest:
        return False
    between, rest = rest.split(tags[2])
    _, closing, after = rest.partition(tags[3])
    return bool(closing) and not (before.strip() or between.strip() or after.strip())


@reward("react_format", source="ReAct, arXiv 2210.03629")
def react_format(assistant_turns: list[str]) -> list[float | None]:
    """1 where <think>...</think> is followed by lines Action: and Action Input:, both with content, else 0."""
    return [float(_is_react(text)) for text in assistant_turns]


def _is_react(text: str) -> bool:
    opened = text.strip()
    _, closing, rest = opened.partition("</think>")
    action, marker, argument = rest.strip().partition("Action Input:")
    return (
        opened.startswith("<think>")
        and bool(closing and marker and argument.strip())
        and action.startswith("Action:")
        and bool(action.removeprefix("Action:").strip())
    )


@reward("repetition", source="Yeo et al., arXiv 2502.03373")
def repetition(
    completion_ids: list[list[int]],
    *,
    n_grams: Annotated[int, Field(ge=1)] = 3,
    max_penalty: Annotated[float, Field(le=0)] = -1.0,
) -> list[float | None]:
    """max_penalty times the share of n-grams that are repeats: 1 - distinct / all; 0 with fewer than n tokens.

    They are n-grams of tokens, because only some languages put white space between words.
    """
    return [max_penalty * _repeated(ids, n_grams) for ids in completion_ids]


def _repeated(tokens: list[int], n: int) -> float:
    grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


@reward("tool_calls", source="this package; F1 over calls, arguments compared as JSON")
def tool_calls(assistant_turns: list[str], expected_tool_calls: list[Any]) -> list[float | None]:
    """F1 between the <tool_call> blocks of the text and the column ``expected_tool_calls``, from 0 to 1.

    A block holds one JSON object ``{"name": ..., "arguments": {...}}``. A call matches when its name and all its
    arguments are equal; each expected call matches once, in any order. A block that is no such object counts as a
    wrong call. Where no call is expected, 1 without any block and 0 with one.

    Args:
        expected_tool_calls: the calls, as a list of such objects or as JSON text of one; None gives no score.

    Raises:
        RewardError: an expected call is no such object.
    """
    pairs = zip(assistant_turns, expected_tool_calls, strict=True)
    return [None if wanted is None else _f1(_calls_in(text), _expected(wanted)) for text, wanted in pairs]


def _f1(made: Counter[str], wanted: Counter[str]) -> float:
    total = made.total() + wanted.total()
    return 2 * (made & wanted).total() / total if total else 1.0


def _calls_in(text: str) -> Counter[str]:
    blocks = [part.partition("</tool_call>")[0] for part in text.split("<tool_call>")[1:]]
    return Counter(_canonical_text(block) or f"no call: {block}" for block in blocks)


def _canonical_text(block: str) -> str | None:
    try:
        return _canonical(json.loads(block))
    except (ValueError, RecursionError):  # also numbers with too many digits, and nesting without end
        return None


def _canonical(call: Any) -> str | None:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    return json.dumps([call["name"], arguments], sort_keys=True)


def _expected(column: Any) -> Counter[str]:
    try:
        calls = json.loads(column) if isinstance(column, str) else column
    except ValueError:
        calls = None
    canonical = [_canonical(call) for call in calls] if isinstance(calls, list) else [None]
    known = [text for text in canonical if text is not None]
    if len(known) != len(canonical):
        raise RewardError(
            f"the column 'expected_tool_calls' is {column!r}",
            'It must be a list of objects {"name": ..., "arguments": {...}}.',
        )
    return Counter(known)
