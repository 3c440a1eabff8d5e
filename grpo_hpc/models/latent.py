"""Multi-head latent attention under tensor parallelism, where Megatron loses a part of a gradient."""

from __future__ import annotations

from typing import Any

from megatron.core import tensor_parallel as tp
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import Tensor, nn


def complete_key_gradients(model: nn.Module) -> None:
    """Make the gradient of the rotary part of the keys whole in layers of Megatron's own linear modules.

    All heads share that part, and each tensor-parallel rank knows the gradient of its heads. Where the down projection
    is cut over ranks, Megatron gathers its output by columns, which hands each rank a slice of its own gradient back:
    those of the other ranks' heads are lost. Here the output is exchanged for one of a part of the tokens with all
    columns. It is what TransformerEngine's module gives, which every rank holds whole, and Megatron gathers the keys of
    such an output in a way that sums their gradient. Needs sequence parallelism, which models with experts have.
    """
    for module in model.modules():
        if isinstance(module, MLASelfAttention) and isinstance(module.linear_kv_down_proj, tp.ColumnParallelLinear):
            module.linear_kv_down_proj.register_forward_hook(_by_tokens)


def _by_tokens(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """[T, 1, columns / ranks] as [T / ranks, 1, columns]."""
    return tp.scatter_to_sequence_parallel_region(tp.gather_from_tensor_model_parallel_region(output[0])), output[1]
