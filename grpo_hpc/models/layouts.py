"""How the Hugging Face tensors of one Megatron parameter lie in it, and how tensor-parallel ranks share it.

Every layout is a list of row ranges: the Megatron parameter is rows of Hugging Face tensors, one range after the other,
perhaps with zero rows behind. So both directions only move rows, and a round trip is bit-exact by construction.
Tensor parallelism then cuts rows (``axis`` 0), columns (``axis`` 1) or nothing (None). Free of torch until a tensor is
touched: the planner counts parameters with the same objects.

Shapes: H hidden size, A query heads, K key/value heads, D head size, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """One tensor-parallel rank's place: ``rank`` of ``size``."""

    rank: int
    size: int

    def part(self, total: int) -> slice:
        """This rank's contiguous part of ``total`` rows; ``total`` must be a multiple of ``size``."""
        if total % self.size:
            raise ValueError(f"{total} rows cannot be split over {self.size} ranks")
        width = total // self.size
        return slice(self.rank * width, (self.rank + 1) * width)


WHOLE = Shard(0, 1)


@dataclass(frozen=True)
class Rows:
    """Rows ``start:stop`` of the Hugging Face tensor number ``source``, or zero rows (``source`` None)."""

    source: int | None
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Sliceable(Protocol):
    """A tensor, or a tensor on disk that is read only where it is sliced."""

    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class Layout(ABC):
    """Between Hugging Face tensors and one Megatron parameter. Subclasses give sizes and the list of rows.

    Attributes:
        axis: dimension that tensor-parallel ranks split; None when each holds the same tensor.
        stacked: matrices on top of each other that are split one by one (gate and up).
    """

    axis: ClassVar[int | None] = None
    stacked: ClassVar[int] = 1

    @property
    @abstractmethod
    def hf_shapes(self) -> tuple[Size, ...]:
        """Shapes of the Hugging Face tensors."""

    @property
    def views(self) -> tuple[Size, ...]:
        """The shapes in which a layout counts their rows: their own, or others of as many values."""
        return self.hf_shapes

    def segments(self) -> list[Rows]:
        """The rows of the Megatron parameter from the first on, without padding."""
        return [Rows(source, 0, shape[0]) for source, shape in enumerate(self.views)]

    @property
    def sharded(self) -> bool:
        return self.axis is not None

    def shape(self, tensor_parallel: int = 1) -> Size:
        """Shape of the whole Megatron parameter, with the padding that ``tensor_parallel`` ranks need."""
        rows = sum(len(segment) for segment in self.segments())
        return (rows, *self.views[0][1:])

    def boxes(self, shard: Shard) -> list[tuple[slice, ...]]:
        """The parts of the whole parameter that a rank holds, in the order in which it stacks them."""
        whole = self.shape(shard.size)
        rest = tuple(slice(0, size) for size in whole[1:])
        if self.axis == 0:
            part = shard.part(whole[0] // self.stacked)
            height = whole[0] // self.stacked
            return [(slice(k * height + part.start, k * height + part.stop), *rest) for k in range(self.stacked)]
        if self.axis == 1:
            return [(slice(0, whole[0]), shard.part(whole[1]), *rest[1:])]
        return [(slice(0, whole[0]), *rest)]

    def rows(self, start: int, stop: int) -> list[Rows]:
        """Where rows ``start:stop`` of the whole parameter come from; what no tensor gives is zero."""
        found, at = [], 0
        for segment in self.segments():
            first, last = max(start, at), min(stop, at + len(segment))
            if first < last:
                found.append(Rows(segment.source, segment.start + first - at, segment.start + last - at))
            at += len(segment)
        if stop > at:
            found.append(Rows(None, max(start, at), stop))
        return found

    def rows_of(self, source: int) -> list[slice]:
        """Where the rows of one Hugging Face tensor lie in the whole parameter, in its own order."""
        found, at = [], 0
        for segment in self.segments():
            if segment.source == source:
                found.append(slice(at, at + len(segment)))
            at += len(segment)
        return found

    def to_megatron(self, sources: Sequence[Sliceable], shard: Shard) -> Tensor:
        """The shard, reading nothing but what it needs of ``sources``; all of those that it sees in another shape."""
        import torch

        pairs = zip(sources, self.hf_shapes, self.views, strict=True)
        sources = [source if shape == view else source[:].reshape(view) for source, shape, view in pairs]
        pieces: list[Tensor] = []
        for box in self.boxes(shard):
            columns = box[1:2] if self.axis == 1 else ()
            for rows in self.rows(box[0].start, box[0].stop):
                if rows.source is None:
                    like = pieces[0] if pieces else sources[0][0:1]
                    pieces.append(like.new_zeros(len(rows), *like.shape[1:]))
                else:
                    index = slice(rows.start, rows.stop)
                    pieces.append(sources[rows.source][(index, *columns) if columns else index])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The Hugging Face tensors, from all shards in rank order."""
        whole = self._join(shards)
        pieces = tuple(whole[rows] for (rows,) in _all_rows(self))
        if self.views == self.hf_shapes:
            return pieces
        return tuple(piece.view(shape) for piece, shape in zip(pieces, self.hf_shapes, strict=True))

    def _join(self, shards: Sequence[Tensor]) -> Tensor:
        import torch

        if len(shards) == 1 or self.axis is None:
            return shards[0]
        if self.axis == 1:
            return torch.cat(tuple(shards), dim=1)
        pieces = [shard.chunk(self.stacked) for shard in shards]
        return torch.cat([piece[k] for k in range(self.stacked) for piece in pieces])


@cache
def _all_rows(layout: Layout) -> tuple[list[slice], ...]:
    """:meth:`Layout.rows_of` of every Hugging Face tensor; thousands of layouts are few different ones."""
    return tuple(layout.rows_of(source) for source in range(len(layout.hf_shapes)))


@dataclass(frozen=True)
class Copy(Layout):
    """The same tensor on every rank (norms, routers, biases of row-parallel layers, all of a vision tower)."""

    size: Size

    @property
    def hf_shapes(self) -> tuple[Size, ...]:
        return (self.size,)


@dataclass(frozen=True)
class Row(Copy):
    """A vector [n] that is one row [1, n] in Hugging Face files."""

    @property
    def hf_shapes(self) -> tuple[Size, ...]:
        return ((1, *self.size),)

    @property
    def views(self) -> tuple[Size, ...]:
        return (self.size,)


@dataclass(frozen=True)
class SplitRows(Copy):
    """A column-parallel matrix [out, in] or its bias [out]: each rank holds a part of the output rows."""

    axis = 0


@dataclass(frozen=True)
class SplitColumns(Copy):
    """A row-parallel matrix [out, in]: each rank holds a part of the input columns."""

    axis = 1


@dataclass(frozen=True)
class Vocabulary(Copy):
    """Embedding or output matrix [V, H], padded with zero rows to a multiple of the ranks.

    Padded rows never leave Megatron, and the log-probabilities leave their logits out.
    """

    axis = 0

    def shape(self, tensor_parallel: int = 1) -> Size:
        return (padded_vocabulary(self.size[0], tensor_parallel), *self.size[1:])


@dataclass(frozen=True)
class GateUp(Layout):
    """Gate [F, H] and up [F, H] on top of each other; a rank holds [its part of gate; its part of up]."""

    width: int
    hidden: int
    axis = 0
    stacked = 2

    @property
    def hf_shapes(self) -> tuple[Size, ...]:
        return ((self.width, self.hidden),) * 2


@dataclass(frozen=True)
class Qkv(Layout):
    """Query [A*D, ...], key and value [K*D, ...] interleaved by group: K x (A/K queries, one key, one value).

    Serves the weights (``trailing`` (H,)) and the biases (``trailing`` ()). With more ranks than groups Megatron splits
    inside a group and gathers the activations: the parts stay contiguous rows.
    """

    heads: int
    kv_heads: int
    head_dim: int
    trailing: Size
    axis = 0

    @property
    def hf_shapes(self) -> tuple[Size, ...]:
        return tuple((heads * self.head_dim, *self.trailing) for heads in (self.heads, self.kv_heads, self.kv_heads))

    @property
    def _of_a_group(self) -> Size:
        """Rows of a group's queries, key and value."""
        return self.heads // self.kv_heads * self.head_dim, self.head_dim, self.head_dim

    def segments(self) -> list[Rows]:
        return [
            Rows(source, group * count, (group + 1) * count)
            for group in range(self.kv_heads)
            for source, count in enumerate(self._of_a_group)
        ]

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        groups = self._join(shards).unflatten(0, (self.kv_heads, -1))
        return tuple(part.flatten(0, 1) for part in groups.split(self._of_a_group, dim=1))


@dataclass(frozen=True)
class Fused(Layout):
    """The tensors of another layout on top of each other, as one Hugging Face tensor."""

    parts: Layout

    @property
    def axis(self) -> int | None:  # type: ignore[override]  # of a class elsewhere, here of what is fused
        return self.parts.axis

    @property
    def stacked(self) -> int:  # type: ignore[override]
        return self.parts.stacked

    @property
    def hf_shapes(self) -> tuple[Size, ...]:
        shapes = self.parts.hf_shapes
        return ((sum(shape[0] for shape in shapes), *shapes[0][1:]),)

    def segments(self) -> list[Rows]:
        above = [0, *accumulate(shape[0] for shape in self.parts.hf_shapes)]
        placed = [(above[rows.source or 0], rows) for rows in self.parts.segments()]
        return [Rows(0, first + rows.start, first + rows.stop) for first, rows in placed]

    def rows_of(self, source: int) -> list[slice]:
        return [rows for part in range(len(self.parts.hf_shapes)) for rows in self.parts.rows_of(part)]

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        import torch

        return (torch.cat(self.parts.to_hf(shards)),)


def padded_vocabulary(vocabulary: int, tensor_parallel: int) -> int:
    """Rows of the embedding in Megatron: the vocabulary rounded up to a multiple of the tensor-parallel size."""
    return -(-vocabulary // tensor_parallel) * tensor_parallel


def elements(shapes: Sequence[Size]) -> int:
    """Number of values in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes)
