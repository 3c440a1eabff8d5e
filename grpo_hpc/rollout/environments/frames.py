"""What a trainer and the process of an episode say to each other: JSON behind its length in four bytes."""

from __future__ import annotations

import json
import struct
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from typing import Any

LONGEST = 2**20
"""Bytes of an answer. To read a longer one would hold up all other episodes of the rank."""


class BadFrame(Exception):
    """What came is no JSON of a bearable length."""


async def send(writer: StreamWriter, data: bytes) -> None:
    """Write one frame.

    Raises:
        ConnectionError: the other side has gone.
    """
    writer.write(struct.pack("!I", len(data)) + data)
    await writer.drain()


async def receive(reader: StreamReader, longest: int = 2**32) -> bytes:
    """Read one frame.

    Raises:
        BadFrame: it is longer than ``longest`` bytes.
        ConnectionError: the other side has gone.
    """
    try:
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        if length > longest:
            raise BadFrame(f"an answer of {length:,} bytes; {longest:,} at most")
        return await reader.readexactly(length)
    except IncompleteReadError:
        raise ConnectionResetError("the other side has gone") from None


def untrusted(data: bytes) -> Any:
    """The value of a frame from the process of an episode: plain JSON, whose texts any encoder can take.

    Raises:
        BadFrame: it is something else.
    """
    try:
        value = json.loads(data)
        if rb"\ud" in data.lower():  # half of a pair, which UTF-8 cannot hold
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        return value
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"an answer that is no JSON: {error}") from None
