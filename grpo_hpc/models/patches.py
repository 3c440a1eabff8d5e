"""Every place where a part of Megatron-Core is replaced, instead of being built from a specification.

A function here makes one change. Its decorator names what it relies on, and the versions of Megatron-Core that it was
read against; its docstring says why Megatron has no hook for it. A test finds every target in the installed version.
What Megatron builds from a specification is chosen in :func:`grpo_hpc.models.policy_model.layer_spec`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import megatron.core.tensor_parallel.random as checkpointing
import torch
import torch.distributed as dist
from megatron.core import tensor_parallel as tp
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import mappings
from megatron.core.tensor_parallel.random import CheckpointFunction, CheckpointWithoutOutput
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.moe import moe_utils, token_dispatcher
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import Tensor, nn

from grpo_hpc.models.dispatch import OneRankDispatcher
from grpo_hpc.models.grouped import grouped_experts
from grpo_hpc.models.head import LogprobHead
from grpo_hpc.models.micro_batch_context import in_this_context
from grpo_hpc.models.norm import ScaledResidual, TokenNorm

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Patch:
    """One change to Megatron-Core.

    Attributes:
        function: makes the change; its docstring says why.
        targets: ``module:Class.attribute`` that it relies on; the attribute may be one of instances.
        versions: of Megatron-Core that it was read against.
    """

    function: Callable[..., Any]
    targets: tuple[str, ...]
    versions: tuple[str, ...]


PATCHES: list[Patch] = []


def _patch(*targets: str, versions: tuple[str, ...] = ("0.16.1",)) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        PATCHES.append(Patch(function, targets, versions))
        return function

    return register


def patch_model(model: nn.Module) -> None:
    """Make all changes that every model of this package has, after Megatron has built it."""
    recompute_in_context()
    score_at_the_head(model)
    sort_once(model)
    complete_key_gradients(model)
    tell_of_padding(model)
    sum_over_expert_replicas(model)
    sum_norms_of_heads(model)
    keep_gradients_off(model)


@_patch(
    "megatron.core.tensor_parallel.random:CheckpointFunction.forward",
    "megatron.core.tensor_parallel.random:CheckpointWithoutOutput.checkpoint",
)
@functools.cache
def recompute_in_context() -> None:
    """Compute again in the context of the micro-batch in which it was computed first; once per process.

    torch's own checkpointing takes a ``context_fn`` for this; Megatron's takes a function and tensors alone. A part of
    a layer that is recomputed (its experts, its feed-forward part) is not given the layer's other arguments either.
    """
    forward, checkpoint = CheckpointFunction.forward, CheckpointWithoutOutput.checkpoint

    def forward_in_context(ctx: Any, function: Callable[..., Any], *args: Any) -> Any:
        return forward(ctx, in_this_context(function), *args)

    def checkpoint_in_context(self: Any, function: Callable[..., Any], *args: Any) -> Any:
        return checkpoint(self, in_this_context(function), *args)

    CheckpointFunction.forward = staticmethod(forward_in_context)
    CheckpointWithoutOutput.checkpoint = checkpoint_in_context


@_patch("megatron.core.models.gpt.gpt_model:GPTModel.output_layer")
def score_at_the_head(model: Any) -> None:
    """Put :class:`LogprobHead` in the place of the output layer.

    GPTModel makes it itself, of no specification, and waits in its forward hooks for parameters that are on their way,
    so it must be called.
    """
    if model.post_process:
        model.output_layer.__class__ = LogprobHead


@_patch(
    "megatron.core.transformer.moe.moe_layer:MoELayer.token_dispatcher",
    "megatron.core.transformer.moe.token_dispatcher:MoEAlltoAllTokenDispatcher.dispatch_postprocess",
    "megatron.core.transformer.moe.token_dispatcher:MoEAlltoAllTokenDispatcher.combine_preprocess",
)
def sort_once(model: nn.Module) -> None:
    """Put :class:`OneRankDispatcher` in the place of dispatchers that serve a single rank.

    The layer chooses among three classes by the name in its configuration.
    """
    for module in model.modules():
        dispatcher: Any = getattr(module, "token_dispatcher", None)
        if type(dispatcher) is MoEAlltoAllTokenDispatcher and dispatcher.tp_size * dispatcher.ep_size == 1:
            dispatcher.__class__ = OneRankDispatcher


@_patch("megatron.core.transformer.multi_latent_attention:MLASelfAttention.linear_kv_down_proj")
def complete_key_gradients(model: nn.Module) -> None:
    """Make the gradient of the rotary part of the keys whole in layers of Megatron's own linear modules.

    In latent attention all heads share that part, and each tensor-parallel rank knows the gradient of its heads. Where
    the down projection is cut over ranks, Megatron gathers its output by columns, which hands each rank a slice of its
    own gradient back: those of the other ranks' heads are lost. Here the output is exchanged for one of a part of the
    tokens with all columns. It is what TransformerEngine's module gives, which every rank holds whole, and Megatron
    gathers the keys of such an output in a way that sums their gradient. Needs sequence parallelism, which models with
    experts have.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, MLASelfAttention)]
    for layer in layers:
        cut = isinstance(layer.linear_kv_down_proj, tp.ColumnParallelLinear)
        if cut and layer.config.tensor_model_parallel_size > 1:
            layer.linear_kv_down_proj.register_forward_hook(_by_tokens)


def _by_tokens(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """[T, 1, columns / ranks] as [T / ranks, 1, columns]."""
    return tp.scatter_to_sequence_parallel_region(tp.gather_from_tensor_model_parallel_region(output[0])), output[1]


@_patch("megatron.core.extensions.transformer_engine:TEDotProductAttention.kept_packed_seq_params")
def tell_of_padding(model: nn.Module) -> None:
    """Let TransformerEngine's attention get ``pad_between_seqs`` of :class:`PackedSequences`.

    Megatron's wrapper passes on the fields that it knows, and this is none of them.
    """
    for module in model.modules():
        kept = getattr(module, "kept_packed_seq_params", None)
        if isinstance(kept, set):
            kept.add("pad_between_seqs")


@_patch("megatron.core.distributed.distributed_data_parallel:DistributedDataParallel.expert_parallel_buffers")
def sum_over_expert_replicas(model: nn.Module) -> None:
    """Let the gradients of experts be summed over the ranks that hold the same expert.

    Megatron does so for parameters that say so, and without expert parallelism its own do not, though tensor
    parallelism may cut them in another way.
    """
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False  # type: ignore[attr-defined]  # Megatron's word for it


@_patch("megatron.core.distributed.finalize_model_grads:_allreduce_non_tensor_model_parallel_grads")
def sum_norms_of_heads(model: Any) -> None:
    """Let gradients of norms of queries and keys be summed over tensor-parallel ranks where each has all weights.

    Megatron sums them by their names if the model's configuration has such norms. Those of :class:`TokenNorm` are cut,
    and those behind a rotation are nothing that the configuration, with which the layers were built, would know.
    """
    behind = any(hasattr(getattr(module, "core_attention", None), "q_layernorm") for module in model.modules())
    if behind or any(isinstance(module, TokenNorm) for module in model.modules()):
        model.config = copy.copy(model.config)
        model.config.qk_layernorm = behind


@_patch("megatron.core.transformer.transformer_layer:TransformerLayer.bias_dropout_add_exec_handler")
def keep_gradients_off(model: nn.Module) -> None:
    """Compute :class:`ScaledResidual` without gradients where the rest of a layer is.

    Megatron turns gradients on around it, whatever the caller said: with a norm in it each layer would keep its
    activations, and scoring would need the memory of training.
    """
    for module in model.modules():
        if isinstance(getattr(module, "self_attn_bda", None), ScaledResidual):
            module.bias_dropout_add_exec_handler = contextlib.nullcontext  # type: ignore[assignment]


@_patch(
    "megatron.core.tensor_parallel.layers:ColumnParallelLinear.forward",
    "megatron.core.tensor_parallel.layers:RowParallelLinear.forward",
    "megatron.core.extensions.transformer_engine:TELayerNormColumnParallelLinear.forward",
)
def extend_class(module: Any, extension: type[nn.Module]) -> None:
    """Put ``extension`` before the class of ``module``, whose methods it may call.

    A specification would have to know every class of linear layers, and layers are adapted after their weights have
    been named. Where TransformerEngine's layer holds a norm, its output is asked for as well.
    """
    if hasattr(module, "return_layernorm_output"):
        module.return_layernorm_output = True
    module.__class__ = type(f"{extension.__name__}{type(module).__name__}", (extension, type(module)), {})


@_patch(
    "megatron.core.extensions.transformer_engine:TELinear.__init__",
    "megatron.core.tensor_parallel.layers:LinearWithGradAccumulationAndAsyncCommunication.backward",
)
def add_weight_gradients_in_place(models: Iterable[nn.Module], overlap: bool) -> None:
    """Let matrix products add their weight gradients to Megatron's fp32 buffer themselves.

    Megatron's own switch, ``gradient_accumulation_fusion``, asks for Apex, which its other linear layers would need.

    Args:
        overlap: gradients are reduced while others are computed.
    """
    for model in models:
        for module in model.modules():
            if hasattr(module, "fuse_wgrad_accumulation"):
                module.fuse_wgrad_accumulation = True  # type: ignore[assignment]  # of TransformerEngine's layers
        for experts in grouped_experts(model):
            experts.in_place, experts.announced = True, overlap


@_patch("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer._set_main_param_and_optimizer_states")
def load_what_belongs(optimizer: Any) -> None:
    """Let Megatron's distributed optimizer load what it saves.

    It hands every entry of a saved state to the optimizer. A reshardable one has no step counters, but torch's Adam
    wants one: it is given one here. One that is kept as it is has notes about its place in a buffer beside the tensors,
    and TransformerEngine's precision-aware Adam takes them for tensors: they are left out.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not isinstance(part, DistributedOptimizer):
            continue
        fill = functools.partial(type(part)._set_main_param_and_optimizer_states, part)
        if isinstance(part.optimizer, torch.optim.Adam):
            part._set_main_param_and_optimizer_states = functools.partial(_fill_with_counter, fill)
        elif part.config.use_precision_aware_optimizer:
            part._set_main_param_and_optimizer_states = functools.partial(_fill_tensors, fill)


def _fill_with_counter(fill: Any, parameter: Tensor, saved: dict[str, Any]) -> None:
    fill(parameter, {"step": torch.zeros(()), **saved})


def _fill_tensors(fill: Any, parameter: Tensor, saved: dict[str, Any]) -> None:
    fill(parameter, {key: value for key, value in saved.items() if isinstance(value, Tensor)})


@_patch(
    "megatron.core.tensor_parallel.random:_lazy_call",
    "megatron.core.tensor_parallel.mappings:_gather_along_first_dim",
    "megatron.core.tensor_parallel.mappings:_reduce_scatter_along_first_dim",
    "megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",
    "megatron.core.transformer.multi_latent_attention:HAVE_TE",
)
@functools.cache
def stand_in_for_cuda() -> None:
    """Let Megatron train on a CPU, which it is not written for; once per process.

    It hands its callbacks to torch.cuda's lazy queue, which waits for a CUDA context that never comes, takes counts of
    tokens from a GPU, asks Gloo for what only NCCL can do, and believes that TransformerEngine is there when another
    package has said so.
    """
    token_dispatcher.maybe_move_tensor_to_cpu = _as_splits
    checkpointing._lazy_call = lambda callback, **kwargs: callback()
    multi_latent_attention.HAVE_TE = isinstance(multi_latent_attention.TELinear, type)
    _exchange_uneven_parts()
    _stand_in_for_transformer_engine()


def _as_splits(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """What Megatron makes of token counts that it fetches from a GPU: collectives take numbers, not tensors."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _exchange_uneven_parts() -> None:
    """Gather and reduce-scatter of parts that differ in length (tokens of an expert), which Gloo cannot do at once."""
    gather_even, scatter_even = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather(part: Tensor, group: Any, sizes: Any = None, use_global_buffer: bool = False) -> Tensor:
        if sizes is None or group.size() == 1:
            return cast(Tensor, gather_even(part, group, sizes, use_global_buffer))
        parts = [part.new_empty(int(size), *part.shape[1:]) for size in sizes]
        parts[group.rank()].copy_(part)
        for rank, found in enumerate(parts):
            dist.broadcast(found, group=group, group_src=rank)
        return torch.cat(parts)

    def scatter(whole: Tensor, group: Any, sizes: Any = None, use_global_buffer: bool = False) -> Tensor:
        if sizes is None or group.size() == 1:
            return cast(Tensor, scatter_even(whole, group, sizes, use_global_buffer))
        total = whole.clone()
        dist.all_reduce(total, group=group)
        return total.split([int(size) for size in sizes])[group.rank()].contiguous()

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather, scatter


class _NoFp8:
    """Stands for TransformerEngine's FP8 state where there is none."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


def _stand_in_for_transformer_engine() -> None:
    """Define names that Megatron imports from TransformerEngine if it can, and uses even if it could not.

    Recomputation of norms asks for the state of FP8; the router asks whether there is a fused product.
    """

    def nothing(**_: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    names: dict[Any, dict[str, Any]] = {
        checkpointing: {
            "FP8GlobalStateManager": _NoFp8,
            "activation_recompute_forward": nothing,
            "fp8_autocast": nothing,
        },
        moe_utils: {"te_general_gemm": None},
    }
    for module, missing in names.items():
        for name, value in missing.items():
            if not hasattr(module, name):
                setattr(module, name, value)
