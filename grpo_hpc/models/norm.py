"""Norms that Megatron-Core lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, reduce_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor

from grpo_hpc.errors import CheckpointError


class RmsNorm(torch.nn.RMSNorm):
    """Root-mean-square norm (Zhang & Sennrich, arXiv 1910.07467) that works with sequence parallelism.

    Each tensor-parallel rank then sees a part of the tokens; Megatron sums the gradients of weights that say so.
    Its own wrapper of torch's norm refuses to.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010 -- unknown to torch's types


class ScaledResidual(torch.nn.Module):
    """Adds what a part of a layer gives to what went into it, normed first or scaled.

    A layer's specification names it where Megatron adds biases and drops; our models do neither there.
    """

    def __init__(self, config: TransformerConfig, normed: bool, scale: float) -> None:
        super().__init__()
        self.norm = RmsNorm(config, config.hidden_size, config.layernorm_epsilon) if normed else torch.nn.Identity()
        self._scale = scale

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Any], Tensor, float], Tensor]:
        """What Megatron calls with the part's output (and no bias) [T, 1, H] and its input [T, 1, H]."""
        return lambda output, residual, dropped: residual + self.norm(output[0]) * self._scale


class TokenNorm(torch.nn.Module):
    """RMS norm over the heads of a token, which tensor-parallel ranks share (OLMoE, arXiv 2409.02060).

    It stands for Megatron's per-head norms.

    Args:
        hidden_size: dimensions of one head.
        heads: heads over all ranks.
    """

    def __init__(self, hidden_size: int, config: TransformerConfig, eps: float, heads: int) -> None:
        super().__init__()
        ranks = config.tensor_model_parallel_size
        if heads % ranks:
            raise CheckpointError(f"a norm over {heads} heads cannot be split over {ranks} tensor-parallel ranks")
        self._total, self._eps, self._ranks = heads * hidden_size, eps, ranks
        self.weight = torch.nn.Parameter(torch.ones(self._total // ranks, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, heads: Tensor) -> Tensor:
        """heads [..., A or K, D] -> the same shape."""
        flat = heads.flatten(-2).float()
        squares = flat.square().sum(-1, keepdim=True)
        if self._ranks > 1:  # the sum forward, and in the backward pass every rank's gradient of it
            squares = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(squares))
        normed = (flat * torch.rsqrt(squares / self._total + self._eps)).to(heads.dtype)
        return (self.weight * normed).view_as(heads)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Megatron's description for distributed checkpoints: rows split over tensor-parallel ranks."""
        state, groups = self.state_dict(prefix="", keep_vars=True), ensure_metadata_has_dp_cp_group(metadata)
        return make_sharded_tensors_for_checkpoint(
            state,
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=mpu.get_tensor_model_parallel_group(),
            dp_cp_group=groups["dp_cp_group"],
        )
