"""Strided block copies between files, streamed through a window of fixed size. All that a worker process does.

Free of torch: a worker is Python, numpy and a hash, some 40 MB, so that the memory limit belongs to the data.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from grpo_hpc.checkpoint.copies import Add, Check, Job, Quantised, Target
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.on_disk.stored import Block, Stored

Bytes = NDArray[np.uint8]

_ALL = slice(None)
_PART = 8 * 2**20  # bytes of an adapter that are read at a time


class Copier:
    """Carries out jobs with at most about three windows of memory.

    Args:
        window: bytes of a target that are assembled at a time.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._buffers: dict[str, Bytes] = {}
        self._handles: OrderedDict[tuple[Path, int], int] = OrderedDict()
        self._scratch: tuple[tuple[Path, int, int], Bytes] | None = None

    def _buffer(self, use: str, nbytes: int) -> Bytes:
        """Memory that is used again: fresh pages would cost as much as copying into them."""
        if len(self._buffers.get(use, ())) < nbytes:
            self._buffers[use] = np.empty(nbytes, np.uint8)
        return self._buffers[use][:nbytes]

    def run(self, job: Job) -> list[str]:
        """Make the targets of a job.

        Returns:
            their digests.

        Raises:
            CheckpointError: a source cannot be read to its end or is not what its digest says.
        """
        for check in job.checks:
            self.check(check)
        return self._make(job.targets)

    def check(self, check: Check) -> None:
        """Read a source again and compare its digest."""
        if self.digest(check.file, check.offset, check.nbytes, type(check.digest) is int) != check.digest:
            raise CheckpointError(
                f"{check.name} in {check.file} is corrupted: bytes {check.offset:,} to "
                f"{check.offset + check.nbytes:,} do not have the digest that was noted when they were written"
            )

    def digest(self, file: Path, offset: int, nbytes: int, crc: bool = False) -> str | int:
        """xxh3-128 of a part of a file, or its CRC-32."""
        digest, value, at = xxhash.xxh3_128(), 0, 0
        buffer = self._buffer("digest", min(self._window, max(nbytes, 1)))
        while at < nbytes:
            part = buffer[: min(len(buffer), nbytes - at)]
            self._read(file, offset + at, part)
            value = zlib.crc32(part.data, value) if crc else value
            if not crc:
                digest.update(part.data)
            at += len(part)
        return value if crc else digest.hexdigest()

    def different_bytes(self, one: Target, other: Target) -> int:
        """Bytes in which two targets would differ."""
        height, found = max(1, self._window // max(one.width, 1)), 0
        for first in range(0, one.rows, height):
            last = min(first + height, one.rows)
            ours, theirs = self._part(one, first, last), self._part(other, first, last, "other")
            found += 0 if np.array_equal(ours, theirs) else int(np.count_nonzero(ours != theirs))
        return found

    def _make(self, targets: tuple[Target, ...]) -> list[str]:
        digests = [xxhash.xxh3_128(target.head) for target in targets]
        for target in targets:
            self._write(target.file, target.offset, target.head)
        height = max(1, self._window // max(target.width for target in targets))
        rows = max(target.rows for target in targets)
        for first in range(0, rows, height):
            for target, digest in zip(targets, digests, strict=True):
                last = min(first + height, target.rows)
                if first < last:
                    part = self._part(target, first, last)
                    digest.update(part.data)
                    self._write(target.file, target.offset + len(target.head) + first * target.width, part.data)
        for target, digest in zip(targets, digests, strict=True):
            digest.update(target.tail)
            self._write(target.file, target.offset + len(target.head) + target.raw, target.tail)
        self._scratch = None
        return [digest.hexdigest() for digest in digests]

    def _part(self, target: Target, first: int, last: int, use: str = "part") -> Bytes:
        """Rows ``first:last`` of a target, in the buffer ``use``."""
        if target.quantised is not None:
            return self._multiplied(target.quantised, first, last)
        blocks = [b for b in target.blocks if b.row < last and b.row + b.rows > first]
        filled = sum((min(last, b.row + b.rows) - max(first, b.row)) * b.width for b in blocks)
        part = self._buffer(use, (last - first) * target.width).reshape(last - first, target.width)
        if filled < part.size:
            part[:] = 0
        for block in blocks:
            top, bottom = max(first, block.row), min(last, block.row + block.rows)
            rows = part[top - first : bottom - first]
            source = block.offset + (top - block.row) * block.stride
            if block.width == target.width == block.stride:
                self._read(block.file, source, rows)
            else:
                rows[:, block.column : block.column + block.width] = self._strided(block, source, bottom - top)
        for add in target.adds:
            self._add(part, first, last, add)
        return part

    def _multiplied(self, quantised: Quantised, first: int, last: int) -> Bytes:
        """Rows ``first:last`` of a quantised matrix in bfloat16."""
        height, width = quantised.block
        numbers = _NUMBERS[quantised.kind](self._rows(quantised.weight, first, last))
        grid = self._rows(quantised.scale, first // height, -(-last // height))
        scales = to_float32(grid, quantised.scale.dtype)[np.arange(first, last) // height - first // height]
        columns = np.arange(numbers.shape[1]) // width
        return from_float32(numbers * scales[:, columns], "bfloat16")

    def _rows(self, stored: Stored, first: int, last: int) -> Bytes:
        """Rows ``first:last`` of a matrix that is one chunk, as they are."""
        (block,) = stored.blocks((), slice(first, last))
        raw = np.empty((block.rows, block.width), np.uint8)
        self._read(block.file, block.offset, raw)
        return raw

    def _add(self, part: Bytes, first: int, last: int, add: Add) -> None:
        top, bottom = max(first, add.row), min(last, add.row + add.rows)
        if top >= bottom:
            return
        up = self._matrix(
            add.up, slice(add.first + top - add.row, add.first + bottom - add.row), add.inner[0], add.inner[1]
        )
        down = self._matrix(add.down, slice(0, add.down.shape[0]))[:, slice(*add.columns)]
        rows = part[top - first : bottom - first]
        rows[:] = from_float32(to_float32(rows, add.dtype) + np.float32(add.scale) * (up @ down), add.dtype)

    def _matrix(self, stored: Stored, rows: slice, column: int = 0, step: int = 1) -> NDArray[np.float32]:
        """Every ``step``-th column of some rows, read in parts: what is left out may be more than what is taken."""
        (block,) = stored.blocks((), rows)
        height, parts = max(1, _PART // block.width), []
        for first in range(0, block.rows, height):
            raw = np.empty((min(height, block.rows - first), block.width), np.uint8)
            self._read(block.file, block.offset + first * block.stride, raw)
            parts.append(to_float32(raw, stored.dtype, slice(column, None, step)))
        return np.concatenate(parts)

    def _strided(self, block: Block, offset: int, rows: int) -> Bytes:
        """Rows of a matrix of which a block takes some columns; the whole rows are kept for the job's other targets."""
        begin = offset - block.first_column
        key = (block.file, begin, rows * block.stride)
        if self._scratch is None or self._scratch[0] != key:
            self._scratch = None
            whole = self._buffer("scratch", rows * block.stride).reshape(rows, block.stride)
            self._read(block.file, begin, whole)
            self._scratch = (key, whole)
        return self._scratch[1][:, block.first_column : block.first_column + block.width]

    def _read(self, file: Path, offset: int, into: Bytes) -> None:
        view, at = into.data.cast("B"), 0
        handle = self._handle(file, os.O_RDONLY)
        while at < len(view):
            got = os.preadv(handle, [view[at:]], offset + at)
            if got == 0:
                raise CheckpointError(f"{file} is truncated: it ends before byte {offset + len(view):,}")
            at += got

    def _write(self, file: Path, offset: int, data: Any) -> None:
        view, at = memoryview(data).cast("B"), 0
        handle = self._handle(file, os.O_WRONLY)
        while at < len(view):
            at += os.pwrite(handle, view[at:], offset + at)

    def close(self) -> None:
        """Close all files."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _handle(self, file: Path, flags: int) -> int:
        """An open file; the longest unused is closed when there are many."""
        key = (file, flags)
        if key not in self._handles:
            if len(self._handles) >= 128:
                os.close(self._handles.popitem(last=False)[1])
            try:
                self._handles[key] = os.open(file, flags)
            except OSError as error:
                raise CheckpointError(f"{file} cannot be opened: {error.strerror}") from error
        self._handles.move_to_end(key)
        return self._handles[key]


def _eight_bits() -> NDArray[np.float32]:
    """All numbers of float8_e4m3fn: sign, four bits of exponent less 7, three of mantissa; all ones are no number."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, (bits & 7) / 8
    size = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    size[bits & 127 == 127] = np.nan
    return np.where(bits < 128, size, -size).astype(np.float32)


_E4M3 = _eight_bits()


def _four_bits(raw: Bytes) -> NDArray[np.float32]:
    """Rows of words [n, bytes] as numbers [n, 2 * bytes]: a byte's lower half first."""
    halves = np.stack((raw & 15, raw >> 4), -1).reshape(len(raw), -1)
    return halves.astype(np.float32) - np.float32(8)


_NUMBERS: dict[str, Callable[[Bytes], NDArray[np.float32]]] = {"fp8": _E4M3.__getitem__, "int4": _four_bits}


def to_float32(raw: Bytes, dtype: str, columns: slice = _ALL) -> NDArray[np.float32]:
    """Raw rows [n, bytes] as numbers [n, m], of which ``columns``."""
    if dtype == "bfloat16":
        return (raw.view(np.uint16)[:, columns].astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.dtype(dtype))[:, columns].astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> Bytes:
    """Numbers as raw rows; to bfloat16 rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(values.astype(np.dtype(dtype))).view(np.uint8)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return np.where(np.isnan(values), bits | 0x400000, rounded).__rshift__(16).astype(np.uint16).view(np.uint8)
