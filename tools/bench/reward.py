"""A reward that costs nothing and differs within every group: the parity of a checksum of the text."""

from __future__ import annotations

from typing import Any
from zlib import crc32


def parity(completions: list[Any], **columns: Any) -> list[float]:
    """1 for about half of the completions; takes texts (ours) and chats (TRL)."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(crc32(text.encode()) & 1) for text in texts]
