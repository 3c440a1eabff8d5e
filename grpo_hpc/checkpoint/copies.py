"""What is copied where: records that a plan is made of. Free of numpy, which only those need who carry it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grpo_hpc.models.on_disk.stored import Block, Stored


@dataclass(frozen=True)
class Add:
    """A low-rank product that is added to some rows of a target: ``scale * up[rows, inner] @ down[:, columns]``.

    Attributes:
        row, rows: the target's rows.
        up: matrix [out, rank]; its rows from ``first`` on are taken. ``down``: [rank, in], of which ``columns``.
        dtype: of the target; the sum is made in float32 and rounded once.
        inner: first column of ``up`` and the step to the next: it may hold those of several experts in turn.
    """

    row: int
    rows: int
    first: int
    columns: tuple[int, int]
    up: Stored
    down: Stored
    scale: float
    dtype: str
    inner: tuple[int, int] = (0, 1)


Kind = Literal["fp8", "int4"]


@dataclass(frozen=True)
class Quantised:
    """Numbers of few bits that a target is made of: each times the scale of its block, in bfloat16.

    Attributes:
        kind: of numbers: e4m3 in bytes, or eight in each 32-bit word, the lowest four bits first, less 8.
        weight: matrix of bytes or words; ``scale``: matrix with a number for each block.
        block: rows and columns of numbers that share a scale; blocks at the edges may be smaller.
    """

    kind: Kind
    weight: Stored
    scale: Stored
    block: tuple[int, int]


@dataclass(frozen=True)
class Target:
    """One tensor or chunk of a file to be written.

    Attributes:
        name: for messages and the manifest.
        offset: where ``head`` begins in the file.
        head, tail: bytes before and behind the raw ones.
        rows, width: the raw bytes as a matrix.
        blocks: what fills it; what none fills stays zero.
        adds: what is then added.
        quantised: what fills it instead.
    """

    name: str
    file: Path
    offset: int
    head: bytes
    tail: bytes
    rows: int
    width: int
    blocks: tuple[Block, ...]
    adds: tuple[Add, ...] = ()
    quantised: Quantised | None = None

    @property
    def raw(self) -> int:
        return self.rows * self.width

    @property
    def nbytes(self) -> int:
        return len(self.head) + self.raw + len(self.tail)


@dataclass(frozen=True)
class Check:
    """Bytes of a source whose digest is known: xxh3-128 as hex, or CRC-32 as a number."""

    name: str
    file: Path
    offset: int
    nbytes: int
    digest: str | int


@dataclass(frozen=True)
class Job:
    """Targets made together, because they share source rows; the sources they are made of are checked first."""

    targets: tuple[Target, ...]
    checks: tuple[Check, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)
