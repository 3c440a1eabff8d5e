"""The parallel layout of a run: Megatron's process groups, and what a rank's place in them means for its batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor

from grpo_hpc.config import RunConfig
from grpo_hpc.control import Control
from grpo_hpc.models.attention import PackedSequences
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.flops import sequence_cost
from grpo_hpc.train.megatron.expert_options import router_options
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.micro_batches import PackedBatch
from grpo_hpc.train.packing import Packing, RowLayout
from grpo_hpc.train.rollout_files import Place


def init_model_parallel(cfg: RunConfig, platform: Platform) -> None:
    """Megatron's process groups and random states; once per process."""
    parallel = cfg.parallel
    with platform.megatron():
        mpu.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
            context_parallel_size=parallel.context_parallel_size,
            expert_model_parallel_size=parallel.expert_model_parallel_size,
            expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
            distributed_timeout_minutes=cfg.resources.distributed_timeout_minutes,
        )
        model_parallel_cuda_manual_seed(cfg.seed)


def model_options(cfg: RunConfig, platform: Platform) -> dict[str, Any]:
    """Options of Megatron's TransformerConfig that follow from the device and from how the run saves memory."""
    parallel = cfg.parallel
    options = platform.transformer_options() | {"sequence_parallel": parallel.sequence_parallel}
    options["num_layers_in_first_pipeline_stage"] = parallel.decoder_first_pipeline_num_layers
    options["num_layers_in_last_pipeline_stage"] = parallel.decoder_last_pipeline_num_layers
    if parallel.recompute_granularity is not None:
        options["recompute_granularity"] = parallel.recompute_granularity
    if parallel.recompute_granularity == "full":
        options["recompute_method"] = parallel.recompute_method
        options["recompute_num_layers"] = parallel.recompute_num_layers
    elif parallel.recompute_granularity == "selective":
        options["recompute_modules"] = list(parallel.recompute_modules)
    return options | router_options(cfg)


def packing_of(cfg: RunConfig) -> Packing:
    """How this rank's micro-batches are packed; asks Megatron for its place."""
    layout = RowLayout(
        context=mpu.get_context_parallel_world_size(),
        context_rank=mpu.get_context_parallel_rank(),
        sequence=mpu.get_tensor_model_parallel_world_size() if cfg.parallel.sequence_parallel else 1,
    )
    interleaved = cfg.parallel.virtual_pipeline_model_parallel_size is not None
    multiple = cfg.parallel.pipeline_model_parallel_size if interleaved else 1
    cost = sequence_cost(read_shape(cfg.model.path))
    return Packing(cfg.batch.micro_batch_size, cost, cfg.batch.max_tokens_per_micro_batch, layout, multiple)


def place_of(control: Control) -> Place:
    """This rank among those that write; asks Megatron for its place."""
    last = bool(mpu.is_pipeline_last_stage())
    first = mpu.get_tensor_model_parallel_rank() == mpu.get_context_parallel_rank() == 0
    return Place(control.rank, control.size, speaks=last and first, last_stage=last)


def packed_sequences(batch: PackedBatch) -> PackedSequences:
    """Where sequences lie in the row, as Megatron's attention and rotary embedding ask for it."""
    bounds = batch.cu_seqlens
    padded = bounds if mpu.get_context_parallel_world_size() > 1 else None  # TransformerEngine insists on it there
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )


def over_context(output: Tensor, batch: PackedBatch) -> Tensor:
    """Per-token values of the whole row [C, N] on every context-parallel rank, from each rank's own [C, n].

    The loss that follows is computed by all of them alike; each takes the gradient of its own tokens, and the
    gradients of the weights are summed over the ranks.
    """
    if mpu.get_context_parallel_world_size() == 1:
        return output
    whole: Tensor = _OverContext.apply(output, batch.scored, len(batch.token_weights), mpu.get_context_parallel_group())
    return whole


class _OverContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, scored: Tensor, total: int, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(scored)
        whole = part.new_zeros(part.shape[0], total)
        whole[:, scored] = part
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[:, ctx.saved_tensors[0]], None, None, None
