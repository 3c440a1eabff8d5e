"""Texts that a model wrote, made safe for a terminal."""

from __future__ import annotations

import re

_LOOKS_ELSEWHERE = re.compile(r"[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")  # turn the direction of what follows
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with what a terminal would obey written as ``\\x1b`` or ``\\u202e``; lines and tabs stay."""
    text = _CONTROL.sub(lambda found: _escaped(found[0]), text)
    return _LOOKS_ELSEWHERE.sub(lambda found: _escaped(found[0]), text)


def _escaped(sign: str) -> str:
    return f"\\x{ord(sign):02x}" if ord(sign) < 256 else f"\\u{ord(sign):04x}"
