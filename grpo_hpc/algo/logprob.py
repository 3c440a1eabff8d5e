"""Log-probabilities of given tokens from hidden states, with the vocabulary split over ranks.

The full logits never exist: tokens are worked through in chunks, and the backward pass computes each chunk's logits
again. With the vocabulary split over R ranks each holds the rows ``[start, start + Vr)`` of the output matrix.

Shapes: N tokens, H hidden size, V vocabulary, Vr rows of the output matrix on this rank.

For logits ``z = (h @ W.T) / temperature`` and target ``y``::

    logp    = z_y - logsumexp(z)                        d logp / dz    = onehot(y) - p
    entropy = logsumexp(z) - sum(p * z)                 d entropy / dz = -p * (log p + entropy)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, cast

import torch
from torch import Tensor

Reduce = Callable[[Tensor], None]


def _alone(tensor: Tensor) -> None:
    """Reduction over a single rank."""


@dataclass(frozen=True)
class VocabularyPart:
    """This rank's rows of the output matrix.

    Attributes:
        start: first row held here.
        vocabulary: rows of the real vocabulary; rows beyond it are padding and take no part.
        sum: in-place sum of a tensor over the ranks that split the vocabulary.
        max: in-place maximum over them.
    """

    start: int
    vocabulary: int
    sum: Reduce = _alone
    max: Reduce = _alone


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    part: VocabularyPart,
    temperature: float = 1.0,
    chunk: int = 1024,
    grad_buffer: Tensor | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token and the entropy of its distribution.

    Args:
        hidden: [N, H].
        weight: [Vr, H], this rank's rows of the output matrix.
        targets: [N] token ids in the whole vocabulary.
        part: which rows these are.
        temperature: logits are divided by it, as in sampling.
        chunk: tokens worked on at a time; bounds the memory at ``chunk * Vr`` floats.
        grad_buffer: float32 [Vr, H] that the gradient of ``weight`` is added to. Autograd is then given zeros, which
            take no memory and mark the gradient as there. Without it the chunks are summed in a float32 tensor of
            their own.
        entropy_gradient: entropies are differentiable too, at the price of a few more operations on every logit.

    Returns:
        log-probabilities [N] (differentiable with respect to hidden and weight) and entropies [N] (differentiable
        only when asked for), in float32, equal on every rank.

    The gradient of ``hidden`` is this rank's part only: the caller sums it over the ranks, as Megatron's
    column-parallel layers do.
    """
    return _TokenLogprobs.apply(hidden, weight, targets, part, temperature, chunk, grad_buffer, entropy_gradient)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        part: VocabularyPart,
        temperature: float,
        chunk: int,
        grad_buffer: Tensor | None,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        logsumexp, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for at in _chunks(len(targets), chunk):
            logits = hidden[at] @ _real_rows(weight, part).T
            top = _largest(logits, temperature)
            part.max(top)
            sums = _sums(logits, temperature, top, _local(targets[at], logits, part))
            part.sum(sums)  # one reduction for the three
            log_total = sums[0].log()
            logsumexp[at] = log_total + top
            logprobs[at] = sums[1] - log_total
            entropy[at] = log_total - sums[2] / sums[0]
        ctx.save_for_backward(hidden, weight, targets, logsumexp, entropy if entropy_gradient else logsumexp)
        ctx.part, ctx.temperature, ctx.chunk, ctx.grad_buffer = part, temperature, chunk, grad_buffer
        ctx.entropy_gradient = entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, logsumexp, entropy = ctx.saved_tensors
        total = None
        if ctx.needs_input_grad[1]:
            total = torch.zeros_like(weight, dtype=torch.float32) if ctx.grad_buffer is None else ctx.grad_buffer
        grad_hidden = torch.empty_like(hidden)
        rows = _real_rows(weight, ctx.part)
        for at in _chunks(len(targets), ctx.chunk):
            logits = hidden[at] @ rows.T
            bonus = (grad_entropy[at], entropy[at]) if ctx.entropy_gradient else None
            local = _local(targets[at], logits, ctx.part)
            grad_logits = _logit_gradient(logits, ctx.temperature, logsumexp[at], local, grad_logprobs[at], bonus)
            grad_hidden[at] = grad_logits @ rows
            if total is not None:
                _add_product(total[: len(rows)], grad_logits, hidden[at])
        return grad_hidden, _weight_gradient(total, weight, ctx.grad_buffer), None, None, None, None, None, None


def _fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """On a GPU one kernel instead of one for each operation: logits are large, and what is done to them is little.

    torch.compile makes it at the first call, which takes seconds.
    """

    @cache
    def compiled() -> Callable[..., Tensor]:
        return cast(Callable[..., Tensor], torch.compile(function))

    @wraps(function)
    def call(logits: Tensor, *args: Any) -> Tensor:
        return (compiled() if logits.is_cuda and logits.numel() else function)(logits, *args)

    return call


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() / temperature if temperature != 1.0 else logits.float()


@_fused
def _largest(logits: Tensor, temperature: float) -> Tensor:
    """Largest of the scaled logits [n] held here; -inf where none is."""
    if not logits.shape[-1]:
        return torch.full(logits.shape[:1], -torch.inf, device=logits.device)
    return _scaled(logits.amax(-1), temperature)


@_fused
def _sums(logits: Tensor, temperature: float, top: Tensor, local: Tensor) -> Tensor:
    """With ``z`` the scaled logits minus ``top``: sum of ``exp z``, ``z`` of the target, sum of ``z exp z``: [3, n]."""
    z = _scaled(logits, temperature) - top[:, None]
    exp = z.exp()
    picked = torch.where(_columns(logits) == local[:, None], z, 0.0)
    return torch.stack((exp.sum(-1), picked.sum(-1), (exp * z).sum(-1)))


@_fused
def _logit_gradient(
    logits: Tensor,
    temperature: float,
    logsumexp: Tensor,
    local: Tensor,
    upstream: Tensor,
    bonus: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient of the logits [n, rows], in their precision; ``bonus`` is the entropies' gradient, and the entropies."""
    log_p = _scaled(logits, temperature) - logsumexp[:, None]
    onehot = (_columns(logits) == local[:, None]).float()
    gradient = upstream[:, None] * (onehot - log_p.exp())
    if bonus is not None:
        gradient = gradient - bonus[0][:, None] * log_p.exp() * (log_p + bonus[1][:, None])
    return _scaled(gradient, temperature).to(logits.dtype)


def _columns(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[-1], device=logits.device)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left.T @ right``, summed in the precision of ``total``."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    elif total.is_cuda:
        torch.addmm(total, left.T, right, out_dtype=total.dtype, out=total)
    else:
        total.add_(left.T @ right)


def _weight_gradient(total: Tensor | None, weight: Tensor, grad_buffer: Tensor | None) -> Tensor | None:
    """What autograd is given for the weight: nothing, zeros beside a buffer, or the sum."""
    if total is None:
        return None
    return total.to(weight.dtype) if grad_buffer is None else weight.new_zeros(()).expand_as(weight)


def _real_rows(weight: Tensor, part: VocabularyPart) -> Tensor:
    """The rows held here without those that are padding: [at most Vr, H]."""
    return weight[: max(0, min(weight.shape[0], part.vocabulary - part.start))]


def _local(targets: Tensor, logits: Tensor, part: VocabularyPart) -> Tensor:
    """Row of each target on this rank; -1 where it lies elsewhere."""
    local = targets - part.start
    return local.masked_fill((local < 0) | (local >= logits.shape[-1]), -1)


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, total)) for at in range(0, total, size)]
