"""The experts of a rank, computed together.

One by one, each of their products is started by the host, and cuBLAS looks for an algorithm whenever the number of
tokens is new, which it nearly always is: with 64 experts the host needs longer for that than the GPU for the products.
torch's grouped product is one kernel whatever the numbers are.

Shapes: T tokens sorted by expert, E experts of this rank, K features in, N features out, r rank of the adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core import tensor_parallel as tp
from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor

_ROW_BYTES = 16
"""The grouped kernel reads rows whose length is a multiple of this."""
_AT_ONCE = 256 << 20  # bytes of gradients in fp32 beside those in the weights' precision


class _GroupedProduct(torch.autograd.Function):
    """``tokens[of expert e] @ weights[e].T`` for all experts; autograd knows of the weights that are ``shown``."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        ends: Tensor,
        idle: list[int],
        in_place: bool,
        weights: Sequence[Tensor],
        *shown: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(tokens, ends)
        ctx.weights, ctx.idle, ctx.in_place = weights, idle, in_place  # parameters, with what Megatron keeps at them
        ctx.shown = bool(shown)
        return F.grouped_mm(tokens, torch.stack(list(weights)).transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, ends = ctx.saved_tensors
        weights, gradient = ctx.weights, gradients[0].contiguous()
        of_tokens = F.grouped_mm(gradient, torch.stack(list(weights)), offs=ends) if ctx.needs_input_grad[0] else None
        parts: list[Tensor | None] = [None] * len(weights)
        if any(weight.requires_grad for weight in weights):
            of_weights = F.grouped_mm(gradient.t(), tokens, offs=ends)
            if ctx.idle:
                of_weights[ctx.idle] = 0
            parts = [part if weight.requires_grad else None for weight, part in zip(weights, of_weights, strict=True)]
            if ctx.in_place:
                _add_to_buffers(weights, of_weights)
        return of_tokens, None, None, None, None, *(parts if ctx.shown else ())


def _add_to_buffers(weights: Sequence[Any], gradients: Tensor) -> None:
    """Add ``gradients`` [E, N, K] to Megatron's fp32 buffers: a few kernels, where numbers of one kind are added."""
    size = max(1, _AT_ONCE // (4 * gradients[0].numel()))
    for at in range(0, len(weights), size):
        trained = [n for n, weight in enumerate(weights[at : at + size]) if weight.requires_grad]
        if not trained:
            continue
        parts = gradients[at : at + size].float()
        torch._foreach_add_([weights[at + n].main_grad for n in trained], [parts[n] for n in trained])
        for n in trained:
            weights[at + n].grad_added_to_main_grad = True


def grouped_linear(
    tokens: Tensor, counts: Sequence[int], weights: Sequence[Tensor], in_place: bool = False, shown: bool = True
) -> Tensor:
    """Every expert's linear layer on its tokens.

    Args:
        tokens: [T, K], those of expert 0 first.
        counts: of tokens for each expert, sum T; may be 0.
        weights: [N, K] for each expert.
        in_place: gradients are added to the weights' ``main_grad`` (Megatron's fp32 buffer) here, which Megatron is
            told by ``grad_added_to_main_grad``.
        shown: autograd gets the weights' gradients. It takes 30 us for each weight to find that they were added
            already; what they were not added to needs it.

    Returns:
        [T, N]
    """
    if not tokens.numel() or any(size * tokens.element_size() % _ROW_BYTES for size in weights[0].shape):
        parts = tokens.split(list(counts))
        return torch.cat([part @ weight.T for part, weight in zip(parts, weights, strict=True)])
    ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32, pin_memory=tokens.is_cuda)
    idle = [expert for expert, count in enumerate(counts) if not count]
    ends = ends.to(tokens.device, non_blocking=True)
    hidden = in_place and not shown and tokens.requires_grad  # else nothing would ask for a backward pass
    made: Tensor = _GroupedProduct.apply(tokens, ends, idle, in_place, weights, *(() if hidden else weights))
    return made


class GroupedExperts(SequentialMLP):
    """Megatron's experts, which stay layers of their own with parameters and adapters of their own, computed together.

    Megatron builds it where the layer's specification names it.

    Attributes:
        in_place: gradients are added to Megatron's fp32 buffers.
        announced: autograd is told of gradients that were, because somebody waits for single ones.
    """

    in_place = False
    announced = True

    def forward(self, tokens: Tensor, counts: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """tokens [T, H] sorted by expert, counts [E], the router's probabilities [T] -> [T, H]; there are no biases."""
        numbers = counts.tolist()
        first, second = ([getattr(e, name) for e in self.local_experts] for name in ("linear_fc1", "linear_fc2"))
        inner = self._linear(first, tokens, numbers)
        if "moe_act" not in (self.config.recompute_modules or ()) or self.config.recompute_granularity != "selective":
            return self._linear(second, self._activate(inner, probs), numbers), None
        again = tp.CheckpointWithoutOutput()
        output = self._linear(second, again.checkpoint(self._activate, inner, probs), numbers)
        again.discard_output_and_register_recompute(output)
        return output, None

    def _activate(self, inner: Tensor, probs: Tensor) -> Tensor:
        """The gated activation, times the router's probability."""
        weight = probs.unsqueeze(-1)
        if self.config.bias_activation_fusion:
            fused: Tensor = weighted_bias_swiglu_impl(inner, None, weight, self.config.activation_func_fp8_input_store)
            return fused
        gate, up = inner.chunk(2, dim=-1)
        return (F.silu(gate) * up * weight).to(inner.dtype)

    def _linear(self, layers: Sequence[Any], tokens: Tensor, counts: list[int]) -> Tensor:
        for layer in layers:  # Megatron waits in them for parameters that are on their way
            for hook in layer._forward_pre_hooks.values():
                hook(layer, ())
        output = grouped_linear(tokens, counts, [layer.weight for layer in layers], self.in_place, self.announced)
        return output + _adapted(layers, tokens, counts) if getattr(layers[0], "lora_on", False) else output


def _adapted(layers: Sequence[Any], tokens: Tensor, counts: list[int]) -> Tensor:
    """What the experts' adapters add (see :mod:`grpo_hpc.models.lora`).

    The gradient of the factor that ranks repeat is summed over them. The rank is filled up with zeros to what the
    kernel reads.
    """
    a, b = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("lora_a", "lora_b"))
    if mpu.get_expert_tensor_parallel_world_size() > 1:
        group = mpu.get_expert_tensor_parallel_group()
        if layers[0].lora_kind == "column":
            a = tp.copy_to_tensor_model_parallel_region(a, group)
        else:
            b = tp.copy_to_tensor_model_parallel_region(b, group)
    missing = -a.shape[1] % (_ROW_BYTES // a.element_size())
    inner = grouped_linear(tokens, counts, F.pad(a, (0, 0, 0, missing)).unbind())
    added: Tensor = layers[0].lora_scale * grouped_linear(inner, counts, F.pad(b, (0, missing)).unbind())
    return added


def grouped_experts(model: torch.nn.Module) -> Iterator[GroupedExperts]:
    """Those of ``model``."""
    return (module for module in model.modules() if isinstance(module, GroupedExperts))
