"""Log-probabilities of given tokens from hidden states, with the vocabulary split over ranks.

The full logits never exist: tokens are worked through in chunks, and the backward pass computes each chunk's logits
again. With the vocabulary split over R ranks each holds the rows ``[start, start + Vr)`` of the output matrix.

Shapes: N tokens, H hidden size, V vocabulary, Vr rows of the output matrix on this rank.

For logits ``z = (h @ W.T) / temperature`` and target ``y``::

    logp    = z_y - logsumexp(z)                        d logp / dz    = onehot(y) - p
    entropy = logsumexp(z) - sum(p * z)                 (reported only: no gradient)
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
    hidden: Tensor, weight: Tensor, targets: Tensor, part: VocabularyPart, temperature: float = 1.0, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token and the entropy of its distribution.

    Args:
        hidden: [N, H].
        weight: [Vr, H], this rank's rows of the output matrix.
        targets: [N] token ids in the whole vocabulary.
        part: which rows these are.
        temperature: logits are divided by it, as in sampling.
        chunk: tokens worked on at a time; bounds the memory at ``chunk * Vr`` floats.

    Returns:
        log-probabilities [N] (differentiable with respect to hidden and weight) and entropies [N] (not
        differentiable), in float32, equal on every rank.

    The gradient of ``hidden`` is this rank's part only: the caller sums it over the ranks, as Megatron's
    column-parallel layers do.
    """
    return _TokenLogprobs.apply(hidden, weight, targets, part, temperature, chunk)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, part: VocabularyPart, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        logsumexp, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for at in _chunks(len(targets), chunk):
            logits = _logits(hidden[at], weight, part, temperature)
            top = logits.max(dim=-1).values if logits.shape[-1] else logits.new_full(logits.shape[:1], -torch.inf)
            part.max(top)
            exp = (logits - top[:, None]).exp()
            local, mine = _local(targets[at], part, logits.shape[-1])
            picked = logits.gather(-1, local[:, None]).squeeze(-1).masked_fill(~mine, 0.0)
            weighted = (exp * logits.masked_fill(exp == 0, 0.0)).sum(-1)
            sums = torch.stack((exp.sum(-1), picked, weighted))  # one reduction for the three
            part.sum(sums)
            logsumexp[at] = sums[0].log() + top
            logprobs[at] = sums[1] - logsumexp[at]
            entropy[at] = logsumexp[at] - sums[2] / sums[0]
        ctx.save_for_backward(hidden, weight, targets, logsumexp)
        ctx.part, ctx.temperature, ctx.chunk = part, temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, _grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, logsumexp = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        for at in _chunks(len(targets), ctx.chunk):
            grad_logits = _logits(hidden[at], weight, ctx.part, ctx.temperature)
            grad_logits.sub_(logsumexp[at, None]).exp_().neg_()  # -p; zero on padding rows
            local, mine = _local(targets[at], ctx.part, grad_logits.shape[-1])
            grad_logits.scatter_add_(-1, local[:, None], mine[:, None].to(grad_logits.dtype))
            grad_logits.mul_(grad_logprobs[at, None] / ctx.temperature)
            scaled = grad_logits.to(hidden.dtype)
            grad_hidden[at] = scaled @ weight
            grad_weight.addmm_(scaled.T, hidden[at])
        return grad_hidden, grad_weight, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, part: VocabularyPart, temperature: float) -> Tensor:
    """Float32 logits of the rows held here, -inf on padding rows: [n, Vr]."""
    logits = (hidden @ weight.T).float()
    if temperature != 1.0:
        logits.div_(temperature)
    padding = part.start + weight.shape[0] - part.vocabulary
    if padding > 0:
        logits[:, max(0, weight.shape[0] - padding) :] = -torch.inf
    return logits


def _local(targets: Tensor, part: VocabularyPart, rows: int) -> tuple[Tensor, Tensor]:
    """Row of each target on this rank (0 where it lies elsewhere) and whether it lies here."""
    local = targets - part.start
    mine = (local >= 0) & (local < rows)
    return local.masked_fill(~mine, 0), mine


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, total)) for at in range(0, total, size)]
