"""Between micro-batches and routers: which experts tokens went to, and which they must go to.

With ``router_replay_mode: R2`` the pass that computes old log-probabilities writes down the routing, and training
follows it; with R3 it is vLLM's. Otherwise a router that moved, or an engine that rounds in another way, sends tokens
to other experts, and the ratio of two probabilities compares two models (arXiv 2507.18071; arXiv 2510.11370).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from grpo_hpc.models.routing import RoutedTokens
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.train.micro_batches import PackedBatch


def _between_layers(values: Tensor) -> Tensor:
    """This rank's part of ``values`` [T, ...]: with sequence parallelism, ranks split the tokens between layers."""
    size = mpu.get_tensor_model_parallel_world_size()
    return values.chunk(size)[mpu.get_tensor_model_parallel_rank()] if size > 1 else values


def routed_tokens(batch: PackedBatch, topk: int) -> RoutedTokens:
    """What routers must know of ``batch``. A model with experts under tensor parallelism has sequence parallelism."""
    experts = None
    if batch.experts is not None:
        experts = _between_layers(batch.experts).unflatten(1, (-1, topk))
    return RoutedTokens(_between_layers(batch.sequence_of), batch.lengths, experts)


def freely_routed(batches: Sequence[PackedBatch]) -> list[PackedBatch]:
    """``batches`` without a routing to follow: for a model that is not the one it was written down from."""
    return [replace(batch, experts=None) for batch in batches]


class RoutingRecorder:
    """Collects the routing of some micro-batches over layers, pipeline stages and the ranks that share a row."""

    def __init__(self, shape: ModelShape, batches: Sequence[PackedBatch]) -> None:
        if shape.experts is None:
            raise ValueError("a model without experts has no routing")
        layers, topk = len(shape.moe_layers), shape.experts.topk
        device = batches[0].input_ids.device
        rows = [int(batch.cu_seqlens[-1]) for batch in batches]
        self._batches = list(batches)
        self._whole = [torch.zeros(length, layers, topk, dtype=torch.int32, device=device) for length in rows]
        self._number = {id(batch): n for n, batch in enumerate(batches)}

    def note(self, batch: PackedBatch, recorded: dict[int, Tensor]) -> None:
        """Take over what the routers of one model chunk chose for ``batch``."""
        mine = _between_layers(batch.rows)
        for layer, chosen in recorded.items():
            self._whole[self._number[id(batch)]][mine, layer] = chosen.to(torch.int32)
        recorded.clear()

    def arrays(self) -> list[np.ndarray]:
        """The routing of every micro-batch, [row, L * k]. Collective over the model's ranks."""
        found: list[np.ndarray] = []
        for whole in self._whole:
            dist.all_reduce(whole, group=mpu.get_model_parallel_group())  # others have zeros where one has a value
            if mpu.get_context_parallel_world_size() > 1:
                dist.all_reduce(whole, group=mpu.get_context_parallel_group())
            found.append(whole.flatten(1).to("cpu", torch.int16).numpy())
        return found
