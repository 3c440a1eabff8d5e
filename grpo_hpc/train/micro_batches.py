"""Micro-batches as tensors.

They are put together by numpy, which works in one thread. torch spreads copies of this size over all threads that it
has, and where these are many, or not all on a core of their own, waiting for each other took a second and more of
every step on machines with H200s.

Shapes: T input tokens of a row that this rank works on, N scored tokens of the whole row, n of them on this rank,
S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from grpo_hpc.algo.sequences import Sequences
from grpo_hpc.models.attention import positions_of
from grpo_hpc.rollout.sample import Key, Sample
from grpo_hpc.train.packing import WHOLE_ROW, RowLayout


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: sequences one after another in a single row.

    Each sequence's last token is no input (nothing follows it), so position ``t`` predicts ``labels[t]``. Where the
    layout asks for it, sequences are padded at their ends: nothing attends to padding and nothing scores it.

    With context parallelism a rank holds two pieces of every sequence, one from its head and one from its tail, so
    that causal attention is equal work for all. What is per scored token is whole on every rank, in packing order.

    Attributes:
        input_ids, position_ids, labels: [1, T]; positions start at 0 in each sequence.
        loss_mask: [1, T] bool, True where the label is a token that the policy sampled.
        scored: [n], which of the N scored tokens the True positions of ``loss_mask`` are.
        cu_seqlens: [S+1] int32, where sequences begin in the whole row, padding included.
        max_seqlen: longest sequence, padding included.
        advantages, token_weights, rollout_logprobs: [N] in packing order; a weighted sum over all micro-batches of an
            optimizer step is its loss.
        old_logprobs, ref_logprobs: [N] or None.
        sequences: which scored tokens belong together.
        rows: [T], the place of this rank's tokens in the whole row.
        sequence_of: [T], number of each of them's sequence; S for padding.
        lengths: [S], tokens of each sequence in the whole row, without padding.
        token_numbers: [T], a number for each of them that depends on its completion and its place in it alone.
        experts: [T, L * k], the experts that each token must go to, layer by layer; None where routers choose.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    loss_mask: Tensor
    scored: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    advantages: Tensor
    token_weights: Tensor
    rollout_logprobs: Tensor
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None
    sequences: Sequences
    rows: Tensor
    sequence_of: Tensor
    lengths: Tensor
    token_numbers: Tensor
    experts: Tensor | None

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]


def pack(
    samples: Sequence[Sample],
    advantages: Sequence[float | np.ndarray],
    token_weights: Sequence[float],
    device: torch.device,
    layout: RowLayout = WHOLE_ROW,
    old: Sequence[np.ndarray] | None = None,
    ref: Sequence[np.ndarray] | None = None,
    routing: Sequence[np.ndarray] | None = None,
) -> PackedBatch:
    """Pack ``samples`` into one row.

    Args:
        advantages: of each sample, one for all of its sampled tokens or float [n].
        token_weights: of each sample, the same for all of its sampled tokens.
        old, ref: log-probabilities of each sample's sampled tokens, float32 [n]; None where they are not needed.
        routing: experts of each sample's tokens but the last, [T - 1, L * k]; None where routers choose.
    """
    count = len(samples)
    tokens = np.array([len(s.tokens) - 1 for s in samples])  # a sequence's last token is no input
    padded = np.array(layout.padded(tokens.tolist()))
    bounds = np.concatenate([[0], padded.cumsum()])
    sampled = np.array([len(s.logprobs) for s in samples])

    owner = np.arange(count).repeat(padded)
    place = np.arange(len(owner)) - bounds[owner]  # in its sequence
    real = place < tokens[owner]
    whole, mask = np.concatenate([s.tokens for s in samples]), np.concatenate([s.mask for s in samples])
    first, last = np.ones(len(whole), dtype=bool), np.ones(len(whole), dtype=bool)
    ends = (tokens + 1).cumsum()
    first[ends - tokens - 1], last[ends - 1] = False, False
    inputs, labels, scored = np.zeros_like(place), np.zeros_like(place), np.zeros_like(real)
    inputs[real], labels[real], scored[real] = whole[last], whole[first], mask[first]
    # 24 bits are room for the longest completion
    numbers = np.array([_number(s.key) << 24 for s in samples])[owner] + place

    here = positions_of(layout.context_rank, layout.context, bounds.tolist()).numpy()

    def send(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    def row(values: np.ndarray) -> Tensor:
        return send(values[here])[None]

    def column(parts: Sequence[np.ndarray]) -> Tensor:
        return send(np.concatenate(parts, dtype=np.float32))

    return PackedBatch(
        input_ids=row(inputs),
        position_ids=row(place),
        labels=row(labels),
        loss_mask=row(scored),
        scored=send((scored.cumsum() - 1)[here][scored[here]]),
        cu_seqlens=send(bounds.astype(np.int32)),
        max_seqlen=int(padded.max()),
        advantages=column([np.broadcast_to(value, n) for value, n in zip(advantages, sampled, strict=True)]),
        token_weights=send(np.array(token_weights, dtype=np.float32).repeat(sampled)),
        rollout_logprobs=column([s.logprobs for s in samples]),
        old_logprobs=None if old is None else column(old),
        ref_logprobs=None if ref is None else column(ref),
        sequences=Sequences(send(sampled), send(np.arange(count).repeat(sampled))),
        rows=send(here),
        sequence_of=send(np.where(real, owner, count)[here]),
        lengths=send(tokens.astype(np.float32)),
        token_numbers=send(numbers[here]),
        experts=None if routing is None else send(_padded_routing(routing, padded)[here]),
    )


def _number(key: Key) -> int:
    """A number that depends on the key alone; of 32 bits."""
    position, sample, branch = key
    return crc32((f"{position}/{sample}" + (f"/{branch}" if branch else "")).encode())


def _padded_routing(routing: Sequence[np.ndarray], padded: np.ndarray) -> np.ndarray:
    """Where every token of the row must go; padding goes where the last token of its sequence goes."""
    parts = [
        np.pad(told, ((0, length - len(told)), (0, 0)), "edge") for told, length in zip(routing, padded, strict=True)
    ]
    return np.concatenate(parts)
