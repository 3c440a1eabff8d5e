"""The format of gpt-oss, "harmony": a turn is a row of messages in channels.

``<|channel|>analysis<|message|>thoughts<|end|><|start|>assistant<|channel|>final<|message|>words``; a call is a message
to ``functions.name``. vLLM reads it with a vocabulary that has to be downloaded, which a compute node often cannot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BETWEEN = re.compile(r"<\|(?:start|end|call|return)\|>(?:assistant)?")
_FUNCTION = re.compile(r"to=functions\.([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>(\w+)")


@dataclass(frozen=True)
class _Part:
    """A message, or text that is in none and has no channel."""

    whole: str
    words: str
    channel: str
    function: str | None


def split_harmony(text: str) -> tuple[str, str]:
    """Thoughts (what was said in the channel ``analysis`` to nobody), and the rest: words, or messages with calls."""
    parts = _parts(text)
    rest = [part for part in parts if part.channel != "analysis" or part.function is not None]
    thoughts = "\n".join(part.words for part in parts if part not in rest)
    if any(part.function is not None for part in rest):
        return thoughts, "<|end|>".join(part.whole for part in rest)
    return thoughts, "\n".join(part.words for part in rest)


def read_harmony(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Words for the user, and calls as function and JSON text."""
    parts = _parts(text)
    calls = [(part.function, part.words) for part in parts if part.function is not None]
    return "\n".join(part.words for part in parts if part.function is None), calls


def _parts(text: str) -> list[_Part]:
    return [_part(whole) for whole in _BETWEEN.split(text) if whole]


def _part(whole: str) -> _Part:
    header, is_message, words = whole.partition("<|message|>")
    if not is_message:
        return _Part(whole, whole, "", None)
    channel, function = _CHANNEL.search(header), _FUNCTION.search(header)
    return _Part(whole, words, channel[1] if channel else "", function[1] if function else None)
