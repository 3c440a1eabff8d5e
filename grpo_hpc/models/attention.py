"""Core attention on packed sequences by torch's scaled_dot_product_attention, with context parallelism.

Used where TransformerEngine is not: on a CPU, or on a GPU without it. Shapes: T tokens of all packed sequences on this
rank, A query heads and K key/value heads on this tensor-parallel rank, D head size.

With context parallelism every sequence is cut into ``2 * ranks`` pieces, and rank r holds pieces r and
``2 * ranks - 1 - r``: one from the head and one from the tail, so that causal attention is equal work for all. Keys and
values are gathered over the ranks; in the backward pass each rank sums the gradients of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import sharded_state_dict_default
from torch import Tensor

from grpo_hpc.models.norm import RmsNorm


def positions_of(rank: int, ranks: int, bounds: Sequence[int]) -> Tensor:
    """Positions of the whole row that context-parallel ``rank`` holds, in the order of its own row.

    Args:
        bounds: where the sequences of the row begin, and its end; lengths are multiples of ``2 * ranks``.
    """
    if ranks == 1:
        return torch.arange(bounds[-1])
    parts = [torch.arange(start, end).chunk(2 * ranks) for start, end in pairwise(bounds)]
    return torch.cat([part[piece] for part in parts for piece in _pieces(rank, ranks)])


def _pieces(rank: int, ranks: int) -> tuple[int, int]:
    return rank, 2 * ranks - 1 - rank


@dataclass
class PackedSequences(PackedSeqParams):
    """Where sequences lie in a row, for Megatron's attention and rotary embedding.

    Attributes:
        pad_between_seqs: never; padding counts as its sequence's last tokens, which causal attention keeps away from
            all others. Unless it is told, TransformerEngine compares lengths on the GPU under context parallelism,
            and waits for the answer in every layer.
    """

    pad_between_seqs: bool = False


class PackedSdpaAttention(MegatronModule):
    """Causal attention inside each packed sequence; a drop-in for Megatron's core attention modules."""

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_seq_params: PackedSeqParams,
        **_: Any,
    ) -> Tensor:
        """query [T, A, D], key and value [T, K, D] -> [T, A*D]; sequence bounds are those of the whole row."""
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        if mpu.get_context_parallel_world_size() > 1:
            key, value = (_whole_row(x, bounds) for x in (key, value))
        outputs = []
        for queries, keys in self._parts(bounds):
            q = query[queries].transpose(0, 1)  # [heads, t, D]
            k, v = (x[keys].transpose(0, 1) for x in (key, value))
            outputs.append(self._attend(q, k, v).transpose(0, 1))
        return torch.cat(outputs).flatten(1)

    def _parts(self, bounds: Sequence[int]) -> Iterator[tuple[slice, slice]]:
        """Rows of this rank's queries, and of the keys up to and including them."""
        ranks, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
        if ranks == 1:
            yield from ((slice(start, end), slice(start, end)) for start, end in pairwise(bounds))
            return
        at = 0
        for start, end in pairwise(bounds):
            length = (end - start) // (2 * ranks)
            for piece in _pieces(rank, ranks):
                yield slice(at, at + length), slice(start, start + (piece + 1) * length)
                at += length

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the last positions, q [A, t, D], to all of k and v [K, s, D]."""
        new, seen = q.shape[1], k.shape[1]
        if new == seen:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=True)
        mask = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
        return F.scaled_dot_product_attention(q, k, v, mask, scale=self.softmax_scale, enable_gqa=True)


@cache
def with_norms(core: type) -> type:
    """``core`` attention that normalises queries and keys, which are rotated by then, head by head.

    Megatron knows them by their names: tensor-parallel ranks have different heads, so it sums their gradients.
    """

    class Normed(core):
        def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            self.q_layernorm = RmsNorm(config, config.kv_channels or 0, config.layernorm_epsilon)
            self.k_layernorm = RmsNorm(config, config.kv_channels or 0, config.layernorm_epsilon)

        def forward(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().forward(self.q_layernorm(query), self.k_layernorm(key), *args, **kwargs)

        def sharded_state_dict(
            self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
        ) -> dict[str, Any]:
            """With the norms, which TransformerEngine's attention would leave out."""
            found: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
            ranks = mpu.get_tensor_model_parallel_group()  # which all hold the same
            for name in ("q_layernorm", "k_layernorm"):
                norm, key = getattr(self, name), f"{prefix}{name}."
                found |= sharded_state_dict_default(norm, key, sharded_offsets, metadata, ranks)
            return found

    return Normed


def _whole_row(part: Tensor, bounds: Sequence[int]) -> Tensor:
    """Keys or values of the whole row in order, from each context-parallel rank's part; differentiable."""
    ranks = mpu.get_context_parallel_world_size()
    gathered = gather_from_sequence_parallel_region(part, group=mpu.get_context_parallel_group())
    order = torch.cat([positions_of(rank, ranks, bounds) for rank in range(ranks)]).argsort()
    whole: Tensor = gathered[order.to(part.device)]
    return whole
