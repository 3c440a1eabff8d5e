"""The linear layers of a rank's experts as one grouped product each.

TransformerEngine starts a cuBLAS product for every expert, and cuBLAS looks for an algorithm whenever the number of
tokens is new, which it nearly always is: with 64 experts the host needs longer for that than the GPU for the products.
torch's grouped product is one kernel whatever the numbers are.

Shapes: T tokens sorted by expert, E experts of this rank, K features in, N features out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
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
    ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32, pin_memory=tokens.is_cuda)
    idle = [expert for expert, count in enumerate(counts) if not count]
    ends = ends.to(tokens.device, non_blocking=True)
    hidden = in_place and not shown and tokens.requires_grad  # else nothing would ask for a backward pass
    made: Tensor = _GroupedProduct.apply(tokens, ends, idle, in_place, weights, *(() if hidden else weights))
    return made


def group_products(model: torch.nn.Module) -> None:
    """Let the experts of ``model`` that TransformerEngine would compute one by one be computed at once."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        weight = getattr(module, "weight0", None)
        if not hasattr(module, "num_gemms") or weight is None:
            continue
        if all(size * weight.element_size() % _ROW_BYTES == 0 for size in weight.shape):
            module.forward = partial(_forward, module)
            module.announces_gradients = True


def keep_gradients_to_experts(model: torch.nn.Module) -> None:
    """Add the gradients of grouped experts to Megatron's buffers without autograd.

    Not where Megatron reduces gradients while others are computed: it learns from autograd that one is complete.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "announces_gradients"):
            module.announces_gradients = False


def _forward(module: Any, tokens: Tensor, counts: Sequence[int]) -> tuple[Tensor, None]:
    """In place of the module's own forward; no tokens at all are its own affair."""
    if not tokens.numel():
        made: tuple[Tensor, None] = type(module).forward(module, tokens, list(counts))
        return made
    weights = [getattr(module, f"weight{expert}") for expert in range(module.num_gemms)]
    return grouped_linear(tokens, counts, weights, module.fuse_wgrad_accumulation, module.announces_gradients), None
