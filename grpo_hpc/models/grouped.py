"""The linear layers of a rank's experts as one grouped product each.

TransformerEngine starts a cuBLAS product for every expert, and cuBLAS looks for an algorithm whenever the number of
tokens is new, which it nearly always is: with 64 experts the host needs longer for that than the GPU for the products.
torch's grouped product is one kernel whatever the numbers are.

Shapes: T tokens sorted by expert, E experts of this rank, K features in, N features out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROW_BYTES = 16
"""The grouped kernel reads rows whose length is a multiple of this."""


class _GroupedProduct(torch.autograd.Function):
    """``tokens[of expert e] @ weights[e].T`` for all experts."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, ends: Tensor, idle: list[int], in_place: bool, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, ends)
        ctx.weights, ctx.idle, ctx.in_place = weights, idle, in_place  # parameters, with what Megatron keeps at them
        return F.grouped_mm(tokens, torch.stack(weights).transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, ends = ctx.saved_tensors
        weights, gradient = ctx.weights, gradients[0].contiguous()
        of_tokens = F.grouped_mm(gradient, torch.stack(weights), offs=ends) if ctx.needs_input_grad[0] else None
        trained = [weight for weight in weights if weight.requires_grad]
        if not trained:
            return of_tokens, None, None, None, *[None] * len(weights)
        of_weights = F.grouped_mm(gradient.t(), tokens, offs=ends)
        if ctx.idle:
            of_weights[ctx.idle] = 0
        parts = [part if weight.requires_grad else None for weight, part in zip(weights, of_weights, strict=True)]
        if ctx.in_place:
            torch._foreach_add_([weight.main_grad for weight in trained], [part for part in parts if part is not None])
            for weight in trained:
                weight.grad_added_to_main_grad = True
        return of_tokens, None, None, None, *parts


def grouped_linear(tokens: Tensor, counts: Sequence[int], weights: Sequence[Tensor], in_place: bool = False) -> Tensor:
    """Every expert's linear layer on its tokens.

    Args:
        tokens: [T, K], those of expert 0 first.
        counts: of tokens for each expert, sum T; may be 0.
        weights: [N, K] for each expert.
        in_place: gradients are added to the weights' ``main_grad`` (Megatron's fp32 buffer) here, which Megatron is
            told by ``grad_added_to_main_grad``.

    Returns:
        [T, N]
    """
    ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32, pin_memory=tokens.is_cuda)
    idle = [expert for expert, count in enumerate(counts) if not count]
    made: Tensor = _GroupedProduct.apply(tokens, ends.to(tokens.device, non_blocking=True), idle, in_place, *weights)
    return made


def group_products(model: torch.nn.Module) -> None:
    """Let the experts of ``model`` that TransformerEngine would compute one by one be computed at once."""
    for module in model.modules():
        weight = getattr(module, "weight0", None)
        if not hasattr(module, "num_gemms") or weight is None:
            continue
        if all(size * weight.element_size() % _ROW_BYTES == 0 for size in weight.shape):
            module.forward = partial(_forward, module)


def _forward(module: Any, tokens: Tensor, counts: Sequence[int]) -> tuple[Tensor, None]:
    """In place of the module's own forward; no tokens at all are its own affair."""
    if not tokens.numel():
        made: tuple[Tensor, None] = type(module).forward(module, tokens, list(counts))
        return made
    weights = [getattr(module, f"weight{expert}") for expert in range(module.num_gemms)]
    return grouped_linear(tokens, counts, weights, module.fuse_wgrad_accumulation), None
