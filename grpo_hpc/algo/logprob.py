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
from typing import Any

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
            logits = _logits(hidden[at], weight, part, temperature)
            top = logits.amax(-1) if logits.shape[-1] else logits.new_full(logits.shape[:1], -torch.inf)
            part.max(top)
            logits.sub_(top[:, None])
            local, mine = _local(targets[at], logits.shape[-1], part)
            picked = torch.where(mine, logits.gather(-1, local[:, None])[:, 0], 0.0) if logits.shape[-1] else 0 * top
            exp = logits.exp()
            sums = torch.stack((exp.sum(-1), picked, torch.linalg.vecdot(exp, logits)))  # one reduction for the three
            part.sum(sums)
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
        for at in _chunks(len(targets), ctx.chunk):
            log_p = _logits(hidden[at], weight, ctx.part, ctx.temperature).sub_(logsumexp[at, None])
            upstream = grad_logprobs[at, None]
            if ctx.entropy_gradient:
                grad_logits = -log_p.exp() * (upstream + grad_entropy[at, None] * (log_p + entropy[at, None]))
            else:
                grad_logits = log_p.exp_().mul_(-upstream)
            local, mine = _local(targets[at], grad_logits.shape[-1], ctx.part)
            if grad_logits.shape[-1]:
                grad_logits.scatter_add_(-1, local[:, None], (upstream * mine[:, None]).to(grad_logits.dtype))
            scaled = grad_logits.div_(ctx.temperature).to(hidden.dtype)
            rows = weight[: scaled.shape[-1]]
            grad_hidden[at] = scaled @ rows
            if total is not None:
                _add_product(total[: len(rows)], scaled, hidden[at])
        return grad_hidden, _weight_gradient(total, weight, ctx.grad_buffer), None, None, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left.T @ right``, summed in the precision of ``total``."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total.add_(left.T @ right)


def _weight_gradient(total: Tensor | None, weight: Tensor, grad_buffer: Tensor | None) -> Tensor | None:
    """What autograd is given for the weight: nothing, zeros beside a buffer, or the sum."""
    if total is None:
        return None
    return total.to(weight.dtype) if grad_buffer is None else weight.new_zeros(()).expand_as(weight)


def _logits(hidden: Tensor, weight: Tensor, part: VocabularyPart, temperature: float) -> Tensor:
    """Float32 logits of the real rows held here: [n, at most Vr]."""
    real = max(0, min(weight.shape[0], part.vocabulary - part.start))
    logits = (hidden @ weight[:real].T).float()
    return logits.div_(temperature) if temperature != 1.0 else logits


def _local(targets: Tensor, rows: int, part: VocabularyPart) -> tuple[Tensor, Tensor]:
    """Row of each target on this rank (0 where it lies elsewhere) and whether it lies here."""
    local = targets - part.start
    mine = (local >= 0) & (local < rows)
    return local.masked_fill(~mine, 0), mine


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, total)) for at in range(0, total, size)]
