"""Core attention on packed sequences by torch's scaled_dot_product_attention.

Used where TransformerEngine is not: on a CPU, or on a GPU without it. Shapes: T tokens of all packed sequences,
A query heads and K key/value heads on this tensor-parallel rank, D head size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


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
        """query [T, A, D], key and value [T, K, D] -> [T, A*D]."""
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        outputs = []
        for start, end in pairwise(bounds):
            q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))  # [heads, t, D]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=True)
            outputs.append(out.transpose(0, 1))
        return torch.cat(outputs).flatten(1)
