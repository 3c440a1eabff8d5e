"""Dropout whose masks do not depend on how a model is cut or a step is packed.

Whether a value is dropped is a hash of the run's seed, the step, the completion, the token's place in it, the layer and
the column: every rank knows its part of the mask without asking, a recomputed layer finds it again, and so does a
resumed run. Shapes: T tokens of a micro-batch, t of them that a module sees, C columns of its input on this rank.
"""

from __future__ import annotations

import torch
from megatron.core import parallel_state as mpu
from torch import Tensor

from grpo_hpc.algo.mixing import mix
from grpo_hpc.models.micro_batch_context import current_context

_GOLDEN = 0x1E3779B97F4A7C15  # odd; keeps tokens and columns apart before they are mixed


class Dropout:
    """Dropout of one layer's input, by the context of its micro-batch (:mod:`grpo_hpc.models.micro_batch_context`).

    Args:
        rate: share of values that become zero; the others are scaled by ``1 / (1 - rate)``.
        layer: a number for the layer.
    """

    def __init__(self, rate: float, layer: int) -> None:
        self._rate, self._layer = rate, layer

    def __call__(self, values: Tensor, columns: int) -> Tensor:
        """``values`` [t, 1, C] or [t, C] with some of them zero.

        Args:
            columns: how many of the layer's columns each tensor-parallel rank holds; 0 where it holds all.
        """
        context = current_context()
        if context is None:
            raise ValueError("dropout was asked for outside of a training step")
        tokens = context.token_numbers
        rank, size = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
        if len(tokens) != len(values):  # sequence parallelism: a part of the tokens is here
            tokens = tokens.chunk(size)[rank]
        first = rank * columns
        here = torch.arange(first, first + values.shape[-1], device=values.device)
        place = self._layer | (context.step & 0x7FFFFFFF) << 32
        seeds = mix(tokens ^ mix(torch.tensor(place, device=values.device)))
        noise = mix(seeds[:, None] + here * _GOLDEN) & 0xFFFFFFFF
        kept = noise >= int(self._rate * 2**32)
        return values * kept.view_as(values) / (1 - self._rate)
