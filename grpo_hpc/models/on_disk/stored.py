"""Tensors as they lie in files: chunks of raw bytes, row-major.

A Hugging Face tensor is one chunk of one safetensors file; a tensor of a Megatron checkpoint is the chunks that its
ranks wrote. Free of torch: worker processes read with these objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from grpo_hpc.errors import CheckpointError

Size = tuple[int, ...]

# name of the dtype in safetensors, in torch, bytes of an element
_DTYPES = (
    ("F64", "float64", 8),
    ("F32", "float32", 4),
    ("BF16", "bfloat16", 2),
    ("F16", "float16", 2),
    ("F8_E4M3", "float8_e4m3fn", 1),
    ("F8_E5M2", "float8_e5m2", 1),
    ("I64", "int64", 8),
    ("I32", "int32", 4),
    ("I16", "int16", 2),
    ("I8", "int8", 1),
    ("U8", "uint8", 1),
    ("BOOL", "bool", 1),
)
ITEMSIZE = {torch_name: size for _, torch_name, size in _DTYPES}
FROM_SAFETENSORS = {name: torch_name for name, torch_name, _ in _DTYPES}
TO_SAFETENSORS = {torch_name: name for name, torch_name, _ in _DTYPES}
FLOATING = ("float64", "float32", "bfloat16", "float16")


def is_file_name(name: str) -> bool:
    """The name of a file in a folder, and no path out of it."""
    return Path(name).name == name and name not in ("", "..") and "\0" not in name


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor whose bytes begin at ``offset`` of ``file``.

    Attributes:
        start, size: the box; as many numbers as the tensor has dimensions.
        crc: CRC-32 of the bytes as the writer noted it; None when it noted none.
    """

    file: Path
    offset: int
    start: Size
    size: Size
    crc: int | None = None


@dataclass(frozen=True)
class Block:
    """A part of a matrix in a file, and its place in another matrix.

    Attributes:
        offset: of the first byte of the part; ``first_column`` bytes of its row lie before it.
        stride: bytes from row to row in the file.
        rows, width: the part, in rows and bytes.
        row, column: where it goes, in rows and bytes.
    """

    file: Path
    offset: int
    stride: int
    rows: int
    width: int
    row: int
    column: int
    first_column: int = 0


@dataclass(frozen=True)
class Stored:
    """One tensor: its shape, its dtype (torch's name) and the chunks that cover it."""

    name: str
    dtype: str
    shape: Size
    chunks: tuple[Chunk, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    def rows(self, first: int, count: int) -> Stored:
        """Some rows of a matrix that is one chunk, as a matrix of their own."""
        (chunk,), width = self.chunks, self.nbytes // max(self.shape[0], 1)
        size = (count, *self.shape[1:])
        return replace(self, shape=size, chunks=(replace(chunk, offset=chunk.offset + first * width, size=size),))

    def viewed(self, shape: Size) -> Stored:
        """A tensor that is one chunk, in another shape of as many values."""
        if shape == self.shape:
            return self
        (chunk,) = self.chunks
        return replace(self, shape=shape, chunks=(replace(chunk, start=(0,) * len(shape), size=shape),))

    def blocks(self, prefix: Size, rows: slice, columns: slice | None = None) -> Iterator[Block]:
        """Where a part of the matrix ``tensor[prefix]`` lies; rows and byte columns count from the part's corner.

        Dimensions behind the rows are one: ``columns`` cuts the first of them and needs the others to be whole.

        Raises:
            CheckpointError: the chunks do not cover the part.
        """
        depth, item = len(prefix), ITEMSIZE[self.dtype]
        rest = self.shape[depth + 1 :]
        inner = math.prod(rest[1:]) * item
        columns = columns or slice(0, rest[0] if rest else 1)
        covered = 0
        for chunk in self._holding(prefix):
            height, across = chunk.size[depth], chunk.size[depth + 1] if rest else 1
            left = chunk.start[depth + 1] if rest else 0
            first, last = max(rows.start, chunk.start[depth]), min(rows.stop, chunk.start[depth] + height)
            near, far = max(columns.start, left), min(columns.stop, left + across)
            if first >= last or near >= far:
                continue
            stride, layer = across * inner, 0
            for index, start, size in zip(prefix, chunk.start, chunk.size, strict=False):
                layer = layer * size + index - start
            skipped = (layer * height + first - chunk.start[depth]) * stride + (near - left) * inner
            width = (far - near) * inner
            covered += (last - first) * width
            yield Block(
                chunk.file,
                chunk.offset + skipped,
                stride,
                last - first,
                width,
                first - rows.start,
                (near - columns.start) * inner,
                (near - left) * inner,
            )
        wanted = (rows.stop - rows.start) * (columns.stop - columns.start) * inner
        if covered != wanted:
            raise CheckpointError(
                f"the chunks of {self.name!r} give {covered:,} of {wanted:,} bytes at {list(prefix)} rows "
                f"{rows.start}-{rows.stop}",
                "Chunks are missing or lie over each other: the checkpoint is not whole.",
            )

    def _holding(self, prefix: Size) -> Iterator[Chunk]:
        for chunk in self.chunks:
            inside = zip(prefix, chunk.start, chunk.size, strict=False)
            if all(start <= index < start + size for index, start, size in inside):
                yield chunk
