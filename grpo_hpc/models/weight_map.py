"""How Megatron parameters and Hugging Face tensors correspond.

A family describes itself as a list of :class:`Rule` rows (see :mod:`grpo_hpc.models.families`); every mover of
weights reads the same rows: load at start, sync to vLLM and export. A row names one Megatron parameter, the Hugging
Face tensors it is made of, and the layout between them. Layouts only slice, stack and reorder, so a round trip is
bit-exact.

Shapes: H hidden size, A query heads, K key/value heads, D head size, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

LAYER = "{i}"


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


class Sliceable(Protocol):
    """A tensor, or a tensor on disk that is read only where it is sliced (safetensors)."""

    def __getitem__(self, index: Any, /) -> Tensor: ...


class Layout(Protocol):
    """Between Hugging Face tensors and the tensor-parallel shards of one Megatron parameter."""

    def to_megatron(self, sources: Sequence[Sliceable], shard: Shard) -> Tensor:
        """The shard, reading nothing but what it needs of ``sources``."""
        ...

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The Hugging Face tensors, from all shards in rank order."""
        ...

    @property
    def sharded(self) -> bool:
        """False when every tensor-parallel rank holds the same tensor."""
        ...


@dataclass(frozen=True)
class Copy:
    """The same tensor on every rank (norms, biases of row-parallel layers)."""

    sharded = False

    def to_megatron(self, sources: Sequence[Sliceable], shard: Shard) -> Tensor:
        return sources[0][:]

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (shards[0],)


@dataclass(frozen=True)
class Columns:
    """A row-parallel matrix [out, in]: each rank holds a part of the input columns."""

    columns: int
    sharded = True

    def to_megatron(self, sources: Sequence[Sliceable], shard: Shard) -> Tensor:
        return sources[0][:, shard.part(self.columns)]

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.cat(tuple(shards), dim=1),)


@dataclass(frozen=True)
class Vocabulary:
    """Embedding or output matrix [V, H], padded with zero rows to a multiple of the ranks.

    Padded rows never leave Megatron, and the log-probabilities leave their logits out.
    """

    rows: int
    sharded = True

    def to_megatron(self, sources: Sequence[Sliceable], shard: Shard) -> Tensor:
        part = shard.part(padded_vocabulary(self.rows, shard.size))
        held = sources[0][part.start : min(part.stop, self.rows)]
        missing = (part.stop - part.start) - held.shape[0]
        return torch.cat((held, held.new_zeros(missing, *held.shape[1:]))) if missing else held

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.cat(tuple(shards))[: self.rows],)


@dataclass(frozen=True)
class GateUp:
    """Gate [F, H] and up [F, H] stacked within each rank: [gate part; up part]."""

    width: int
    sharded = True

    def to_megatron(self, sources: Sequence[Sliceable], shard: Shard) -> Tensor:
        part = shard.part(self.width)
        return torch.cat((sources[0][part], sources[1][part]))

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        halves = [shard.chunk(2) for shard in shards]
        return torch.cat([gate for gate, _ in halves]), torch.cat([up for _, up in halves])


@dataclass(frozen=True)
class Qkv:
    """Query [A*D, ...], key and value [K*D, ...] interleaved by group: K x (A/K queries, one key, one value).

    Serves the weights (trailing dimension H) and the biases (no trailing dimension).
    """

    heads: int
    kv_heads: int
    head_dim: int
    sharded = True

    def to_megatron(self, sources: Sequence[Sliceable], shard: Shard) -> Tensor:
        groups = shard.part(self.kv_heads)
        count = groups.stop - groups.start
        per_group = self.heads // self.kv_heads
        blocks = []
        for source, heads_per_group in zip(sources, (per_group, 1, 1), strict=True):
            rows = heads_per_group * self.head_dim
            block = source[groups.start * rows : groups.stop * rows]
            blocks.append(block.reshape(count, rows, *block.shape[1:]))
        return torch.cat(blocks, dim=1).flatten(0, 1)

    def to_hf(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        whole = torch.cat(tuple(shards))
        per_group = self.heads // self.kv_heads
        grouped = whole.reshape(self.kv_heads, (per_group + 2) * self.head_dim, *whole.shape[1:])
        parts = grouped.split([per_group * self.head_dim, self.head_dim, self.head_dim], dim=1)
        return tuple(part.flatten(0, 1) for part in parts)


@dataclass(frozen=True)
class Rule:
    """One row of a weight map.

    Attributes:
        megatron: parameter name in the local layer spec; ``{i}`` stands for the global layer number from 0.
        hf: names of the Hugging Face tensors.
        layout: how they correspond.
        te: parameter name in the TransformerEngine layer spec, where it differs.
        exported: False for a parameter that repeats another (the tied output matrix on the last pipeline stage).
    """

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    te: str | None = None
    exported: bool = True

    @property
    def per_layer(self) -> bool:
        return LAYER in self.megatron

    def megatron_name(self, layer: int, layer_spec: str) -> str:
        name = self.te if self.te and layer_spec == "transformer_engine" else self.megatron
        return name.replace(LAYER, str(layer))

    def hf_names(self, layer: int) -> tuple[str, ...]:
        return tuple(name.replace(LAYER, str(layer)) for name in self.hf)


@dataclass(frozen=True)
class Entry:
    """A rule applied to one layer (or to the model, for rules without layers)."""

    name: str
    hf_names: tuple[str, ...]
    layout: Layout
    exported: bool


def entries(rules: Sequence[Rule], layers: int, layer_spec: str) -> list[Entry]:
    """Every parameter of the whole model, in the order of the rules, layer by layer."""
    found: list[Entry] = []
    heads = [rule for rule in rules if not rule.per_layer]
    for rule in heads[:1]:
        found.append(_entry(rule, 0, layer_spec))
    for layer in range(layers):
        found.extend(_entry(rule, layer, layer_spec) for rule in rules if rule.per_layer)
    found.extend(_entry(rule, 0, layer_spec) for rule in heads[1:])
    return found


def _entry(rule: Rule, layer: int, layer_spec: str) -> Entry:
    return Entry(rule.megatron_name(layer, layer_spec), rule.hf_names(layer), rule.layout, rule.exported)


def padded_vocabulary(vocabulary: int, tensor_parallel: int) -> int:
    """Rows of the embedding in Megatron: the vocabulary rounded up to a multiple of the tensor-parallel size."""
    return -(-vocabulary // tensor_parallel) * tensor_parallel
