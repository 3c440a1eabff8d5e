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

from grpo_hpc.models.micro_batch_context import RoutedTokens
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
    """Collects which experts the tokens of some micro-batches are sent to in a pass without gradient.

    Each rank keeps its own tokens and layers in host memory, a byte or two for each choice.

    Args:
        layers: numbers of the layers with experts that this rank has.
    """

    def __init__(self, shape: ModelShape, batches: Sequence[PackedBatch], layers: Sequence[int]) -> None:
        if shape.experts is None:
            raise ValueError("a model without experts has no routing")
        self._shape, self._batches, self._layers = (len(shape.moe_layers), shape.experts.topk), batches, list(layers)
        self._dtype = torch.uint8 if shape.experts.count <= 256 else torch.int16
        self._missing = {(number, layer) for number in range(len(batches)) for layer in layers}
        self._mine = [self._room(len(_between_layers(batch.rows))) for batch in batches]

    def _room(self, tokens: int) -> Tensor:
        """For this rank's part of a micro-batch, where a GPU writes without waiting."""
        pinned = self._batches[0].rows.is_cuda
        return torch.empty(len(self._layers), tokens, self._shape[1], dtype=self._dtype, pin_memory=pinned)

    def note(self, number: int, layer: int, chosen: Tensor) -> None:
        """Take over the experts [t, k] that a layer chose for this rank's tokens of the micro-batch ``number``."""
        if (number, layer) not in self._missing:
            raise RuntimeError(f"layer {layer} chose experts for micro-batch {number} for a second time")
        self._missing.remove((number, layer))
        self._mine[number][self._layers.index(layer)].copy_(chosen.to(self._dtype), non_blocking=True)

    def check_complete(self) -> None:
        """Raise RuntimeError unless every layer has told of every micro-batch."""
        if self._missing:
            number, layer = min(self._missing)
            raise RuntimeError(
                f"{len(self._missing)} of {len(self._batches) * len(self._layers)} routings were not recorded, the "
                f"first of them layer {layer} for micro-batch {number}"
            )

    def arrays(self) -> list[np.ndarray]:
        """The routing of every micro-batch [row, L * k], layer by layer: uint8 up to 256 experts, else int16.

        A row is that of all context-parallel ranks with its padding, as ``PackedBatch.cu_seqlens`` cuts it, and has the
        layers of all pipeline stages. Collective over the ranks that share it, all of which get it; one row at a time
        is on the device.
        """
        self.check_complete()
        return [self._whole(batch, mine) for batch, mine in zip(self._batches, self._mine, strict=True)]

    def _whole(self, batch: PackedBatch, mine: Tensor) -> np.ndarray:
        device, (layers, topk) = batch.rows.device, self._shape
        whole = torch.zeros(int(batch.cu_seqlens[-1]), layers, topk, dtype=self._dtype, device=device)
        if self._layers:
            here = torch.tensor(self._layers, device=device)
            whole[_between_layers(batch.rows)[:, None], here] = mine.to(device, non_blocking=True).transpose(0, 1)
        single = whole.view(torch.uint8)  # which NCCL and Gloo can add: others have zeros where one has a value
        dist.all_reduce(single, group=mpu.get_model_parallel_group())
        if mpu.get_context_parallel_world_size() > 1:
            dist.all_reduce(single, group=mpu.get_context_parallel_group())
        found: np.ndarray = whole.flatten(1).cpu().numpy()
        return found
