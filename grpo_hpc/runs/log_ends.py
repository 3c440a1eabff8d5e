"""The beginning and the end of logs, which may be larger than memory: whoever looks for a reason reads no more."""

from __future__ import annotations

import os
from pathlib import Path

HEAD, TAIL = 2**18, 2**20
"""Bytes that are read from either end."""
_BLOCK = 2**16


def ends_of(log: Path, head: int = HEAD, tail: int = TAIL) -> str:
    """The first ``head`` and the last ``tail`` bytes of a log, whole lines; a line says what is left out between.

    What is no UTF-8 becomes a question mark. A log that is not there is empty.
    """
    try:
        with log.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= head + tail:
                return _text(file.read(head + tail))
            first = file.read(head).rpartition(b"\n")[0]
            file.seek(size - tail)
            last = file.read(tail).partition(b"\n")[2]
    except FileNotFoundError:
        return ""
    return f"{_text(first)}\n... {size - len(first) - len(last):,} bytes left out ...\n{_text(last)}"


def start_of_last(log: Path, lines: int) -> int:
    """Where the last ``lines`` lines of a log begin, in bytes; read from its end, block by block."""
    with log.open("rb") as file:
        at = os.fstat(file.fileno()).st_size - 1  # the end of the last line stands before no other
        while at > 0:
            start = max(0, at - _BLOCK)
            file.seek(start)
            block = file.read(at - start)
            if (found := block.count(b"\n")) >= lines:
                place = len(block)
                for _ in range(lines):
                    place = block.rindex(b"\n", 0, place)
                return start + place + 1
            at, lines = start, lines - found
    return 0


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
