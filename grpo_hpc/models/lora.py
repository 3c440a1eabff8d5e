"""Low-rank adapters on Megatron's parallel linear layers (LoRA, arXiv 2106.09685).

An adapted layer computes ``W x + s B A x`` with W frozen, A [r, in], B [out, r] and ``s = alpha / r`` (rsLoRA,
arXiv 2312.03732: ``alpha / sqrt(r)``). Adapters live in the layer itself as ``lora_a`` and ``lora_b``, beside
``weight``, and follow its tensor parallelism:

- column-parallel: every rank holds all of A and its rows of B; ``A x`` is replicated, its gradient summed over ranks.
- row-parallel: every rank holds its columns of A and all of B; the partial ``A x`` are summed over the ranks.

- whole on every rank (TransformerEngine's down projections of latent attention): so are both factors.
- experts: both factors belong to one expert and travel with it. Every rank that shares an expert sees all of its tokens
  and adds a part to its output, so the replicated factor sums its gradient over these ranks and nothing else is needed.

With sequence parallelism the replicated factor of a layer outside of experts sees a part of the tokens only, so it is
marked for Megatron to sum its gradient. The weights that others see are merged on the fly, rank by rank: the frozen
weight itself never changes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core import tensor_parallel as tp
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from grpo_hpc.errors import ConfigError
from grpo_hpc.models.dropout import Dropout
from grpo_hpc.models.families.counting import linears
from grpo_hpc.models.movers import dense_place, expert_place, local_parameters
from grpo_hpc.models.patches import extend_class
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.models.shape import ModelShape

Kind = Literal["column", "row", "whole"]

_FEED_FORWARD = frozenset({"linear_fc1", "linear_fc2"})


@dataclass(frozen=True)
class Adapters:
    """Which adapters a model gets.

    Attributes:
        dropout: on the input of the adapters, in training mode only (see :mod:`grpo_hpc.models.dropout`).
        linears: Megatron's names of the layers (``linear_qkv`` ...).
        seed: of A; B starts at zero, so training starts from the base model.
    """

    rank: int
    alpha: float
    dropout: float
    linears: frozenset[str]
    rslora: bool
    seed: int

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def add_adapters(chunks: Sequence[PolicyModel], adapters: Adapters) -> None:
    """Freeze every parameter of the model and give the target layers adapters.

    The values of A depend on the parameter's name and the seed alone, so every layout starts from the same adapters.

    Raises:
        ConfigError: a target layer is of a kind that cannot be adapted.
    """
    shape = chunks[0].shape
    if adapters.dropout and adapts_experts(shape, adapters):
        raise ConfigError(
            f"tuner.lora_dropout: adapters of {shape.family}'s experts cannot have it, and peft has no form for it",
            f"Use lora_dropout: 0, or target_modules: [{', '.join(sorted(linears(shape) - _FEED_FORWARD))}].",
        )
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.requires_grad_(False)
    names = {id(parameter): name for name, parameter in local_parameters(chunks).items()}
    for chunk in chunks:
        for path, module in list(chunk.named_modules()):
            if path.rsplit(".", 1)[-1] in adapters.linears:
                _adapt(module, names[id(module.weight)], adapters)


def adapts_experts(shape: ModelShape, adapters: Adapters) -> bool:
    """Whether layers inside of experts get adapters."""
    return shape.experts is not None and bool(adapters.linears & _FEED_FORWARD)


def adapted_layers(model: nn.Module) -> Iterator[AdaptedLinear]:
    """The layers of ``model`` that have adapters."""
    return (module for module in model.modules() if isinstance(module, AdaptedLinear))


def merged_values(chunks: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """What others see of a parameter: merged with its adapter, if it has one."""
    layers = {id(layer.weight): layer for chunk in chunks for layer in adapted_layers(chunk)}

    def value(parameter: Tensor) -> Tensor:
        layer = layers.get(id(parameter))
        return parameter.detach() if layer is None else layer.merged()

    return value


@contextlib.contextmanager
def adapters_off(models: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, ``models`` compute what they did before they were adapted: the reference model."""
    layers = [layer for model in models for layer in adapted_layers(model)]
    for layer in layers:
        layer.lora_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_on = True


class AdaptedLinear(nn.Module):
    """What an adapted layer does beyond its own class; mixed into that class by :func:`add_adapters`."""

    weight: Tensor
    lora_a: Tensor
    lora_b: Tensor
    lora_kind: Kind
    lora_scale: float
    lora_dropout: Dropout | None
    lora_on: bool
    lora_expert: bool
    config: Any

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's own output and bias, with the adapter's part added to the output.

        Not asked of experts, which are computed together (:mod:`grpo_hpc.models.grouped`).
        """
        output, bias = super().forward(input_, *args, **kwargs)
        if isinstance(output, tuple):  # TransformerEngine's norm and layer in one: it was asked for the normed input
            output, input_ = output
        if not self.lora_on:
            return output, bias
        return output + self.lora_scale * F.linear(self._inner(input_), self.lora_b), bias

    def merged(self) -> Tensor:
        """This rank's shard of ``W + s B A`` in float32: in bfloat16 a small adapter would be lost."""
        delta = self.lora_b.detach().float() @ self.lora_a.detach().float()
        return self.weight.detach().float() + self.lora_scale * delta

    def _inner(self, input_: Tensor) -> Tensor:
        """``A x`` as every rank needs it: [tokens of the output, batch, r]."""
        parallel = self.config.sequence_parallel
        inner = F.linear(self._dropped(input_), self.lora_a)
        if self.config.tensor_model_parallel_size == 1 or self.lora_kind == "whole":
            return inner
        if self.lora_kind == "column":
            gather = tp.gather_from_sequence_parallel_region
            return gather(inner) if parallel else tp.copy_to_tensor_model_parallel_region(inner)
        if parallel:
            return tp.reduce_scatter_to_sequence_parallel_region(inner)
        return tp.reduce_from_tensor_model_parallel_region(inner)

    def _dropped(self, input_: Tensor) -> Tensor:
        """The input with some of its values zero, the same whatever the layout."""
        if self.lora_dropout is None or not self.training:
            return input_
        return self.lora_dropout(input_, self.lora_a.shape[1] if self.lora_kind == "row" else 0)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """The layer's own entries and the adapter's, each with the axis that tensor-parallel ranks split."""
        entries: dict[str, Any] = super().sharded_state_dict(  # type: ignore[misc]  # of the class this is mixed into
            prefix, sharded_offsets, metadata
        )
        axes = {"column": {"lora_b": 0}, "row": {"lora_a": 1}, "whole": {}}[self.lora_kind]
        own = {name: getattr(self, name) for name in ("lora_a", "lora_b")}
        group = mpu.get_expert_tensor_parallel_group() if self.lora_expert else mpu.get_tensor_model_parallel_group()
        made: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            own,
            prefix,
            axes,
            sharded_offsets,
            tp_group=group,
            dp_cp_group=mpu.get_data_parallel_group(with_context_parallel=True),  # Megatron knows better for experts
        )
        return entries | made


def _adapt(module: Any, name: str, adapters: Adapters) -> None:
    kind = _kind(module)
    rows, columns = module.weight.shape
    expert = ".experts." in name
    place = expert_place() if expert else dense_place()
    size, rank = place.size, place.rank
    split = kind == "row"
    whole = columns * size if split else columns
    generator = torch.Generator().manual_seed(crc32(name.encode()) ^ adapters.seed)
    a = (torch.rand(adapters.rank, whole, generator=generator) * 2 - 1) / math.sqrt(whole)  # as peft starts it
    a = a[:, rank * columns : (rank + 1) * columns] if split else a
    like = {"dtype": module.weight.dtype, "device": module.weight.device}
    module.lora_a = nn.Parameter(a.to(**like).contiguous())
    module.lora_b = nn.Parameter(torch.zeros(rows, adapters.rank, **like))
    module.lora_kind, module.lora_scale = kind, adapters.scale
    module.lora_dropout = Dropout(adapters.dropout, crc32(name.encode())) if adapters.dropout else None
    module.lora_on, module.lora_expert = True, expert
    extend_class(module, AdaptedLinear)
    if kind == "whole":
        for factor in (module.lora_a, module.lora_b):
            factor.sequence_parallel = module.config.sequence_parallel
        return
    replicated, cut = (module.lora_a, module.lora_b) if kind == "column" else (module.lora_b, module.lora_a)
    tp.set_tensor_model_parallel_attributes(cut, True, 0 if kind == "column" else 1, 1)
    if expert:
        for factor in (cut, replicated):
            factor.allreduce = getattr(module.weight, "allreduce", True)  # False: not shared by all replicas
        if size == 1:  # tensor-parallel ranks have different experts then: each counts in the gradient norm
            tp.set_tensor_model_parallel_attributes(replicated, True, 0, 1)
    else:
        replicated.sequence_parallel = module.config.sequence_parallel


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, _row_classes()):
        return "row"
    with contextlib.suppress(ImportError):
        from megatron.core.extensions.transformer_engine import TELinear

        if type(module) is TELinear:
            return "whole"
    return "column"


def _row_classes() -> tuple[type, ...]:
    found: list[type] = [tp.RowParallelLinear]
    with contextlib.suppress(ImportError):
        from megatron.core.extensions.transformer_engine import TERowParallelLinear

        found.append(TERowParallelLinear)
    return tuple(kind for kind in found if isinstance(kind, type))  # no class where TransformerEngine is not
