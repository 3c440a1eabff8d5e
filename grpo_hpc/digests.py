"""Digests of files, piece by piece, so that many processes can share the reading of large ones."""

from __future__ import annotations

from pathlib import Path

import xxhash

ALGORITHM = "xxh3_128"
PIECE = 64 * 2**20
"""Bytes of a piece."""
_BLOCK = 4 * 2**20

Piece = tuple[int, int, str]
"""Offset, bytes and digest."""


def pieces_of(file: Path) -> list[Piece]:
    """All of ``file`` in pieces; one of an empty file."""
    size = file.stat().st_size
    parts = [(offset, min(PIECE, size - offset)) for offset in range(0, size, PIECE)] or [(0, 0)]
    return [(offset, nbytes, digest(file, offset, nbytes)) for offset, nbytes in parts]


def digest(file: Path, offset: int, nbytes: int) -> str:
    """xxh3-128 of a part of a file, in hexadecimal digits; what is missing at its end does not count."""
    found = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as source:
        source.seek(offset)
        while nbytes > 0 and (block := source.read(min(_BLOCK, nbytes))):
            found.update(block)
            nbytes -= len(block)
    return str(found.hexdigest())
