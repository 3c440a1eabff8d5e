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
from grpo_hpc.rollout.trajectory import Trajectory, unpack_experts
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
        loss_mask: [1, T] bool, True where the label is a response token.
        scored: [n], which of the N scored tokens the True positions of ``loss_mask`` are.
        cu_seqlens: [S+1] int32, where sequences begin in the whole row, padding included.
        max_seqlen: longest sequence, padding included.
        advantages, weights, rollout_logprobs: [N] in packing order; a weighted sum over all micro-batches of an
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
    weights: Tensor
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


def pack(trajectories: Sequence[Trajectory], device: torch.device, layout: RowLayout = WHOLE_ROW) -> PackedBatch:
    """Pack ``trajectories`` into one row."""
    count = len(trajectories)
    tokens = np.array([t.tokens - 1 for t in trajectories])  # a sequence's last token is no input
    padded = np.array(layout.padded(tokens.tolist()))
    bounds = np.concatenate([[0], padded.cumsum()])
    responses = np.array([len(t.response_tokens) for t in trajectories])

    owner = np.arange(count).repeat(padded)
    place = np.arange(len(owner)) - bounds[owner]  # in its sequence
    real = place < tokens[owner]
    scored = real & (place >= (tokens - responses)[owner])
    whole = _column([t.prompt_tokens + t.response_tokens for t in trajectories], np.int64)
    first, last = np.ones(len(whole), dtype=bool), np.ones(len(whole), dtype=bool)
    ends = (tokens + 1).cumsum()
    first[ends - tokens - 1], last[ends - 1] = False, False
    inputs, labels = np.zeros_like(place), np.zeros_like(place)
    inputs[real], labels[real] = whole[last], whole[first]
    # 24 bits are room for the longest completion
    numbers = np.array([crc32(f"{t.position}/{t.sample}".encode()) << 24 for t in trajectories])[owner] + place

    here = positions_of(layout.context_rank, layout.context, bounds.tolist()).numpy()

    def send(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    def row(values: np.ndarray) -> Tensor:
        return send(values[here])[None]

    def repeat(values: list[float]) -> Tensor:
        return send(np.array(values, dtype=np.float32).repeat(responses))

    def joined(columns: list[list[float] | None]) -> Tensor | None:
        known = [column for column in columns if column is not None]
        return send(_column(known, np.float32)) if len(known) == len(columns) else None

    experts = _experts(trajectories, padded.tolist())
    return PackedBatch(
        input_ids=row(inputs),
        position_ids=row(place),
        labels=row(labels),
        loss_mask=row(scored),
        scored=send((scored.cumsum() - 1)[here][scored[here]]),
        cu_seqlens=send(bounds.astype(np.int32)),
        max_seqlen=int(padded.max()),
        advantages=repeat([t.advantage for t in trajectories]),
        weights=repeat([t.token_weight for t in trajectories]),
        rollout_logprobs=send(_column([t.rollout_logprobs for t in trajectories], np.float32)),
        old_logprobs=joined([t.old_logprobs for t in trajectories]),
        ref_logprobs=joined([t.ref_logprobs for t in trajectories]),
        sequences=Sequences(send(responses), send(np.arange(count).repeat(responses))),
        rows=send(here),
        sequence_of=send(np.where(real, owner, count)[here]),
        lengths=send(tokens.astype(np.float32)),
        token_numbers=send(numbers[here]),
        experts=None if experts is None else send(experts[here]),
    )


def _column(lists: Sequence[list[int]] | Sequence[list[float]], dtype: type[np.number]) -> np.ndarray:
    """All values one after another."""
    return np.concatenate([np.array(values, dtype=dtype) for values in lists])


def _experts(trajectories: Sequence[Trajectory], padded: Sequence[int]) -> np.ndarray | None:
    """Where every token of the row must go [row, L * k]; padding goes where the last token of its sequence goes."""
    if all(t.routing is None for t in trajectories):
        return None
    parts = []
    for t, length in zip(trajectories, padded, strict=True):
        if t.routing is None:
            raise ValueError(f"completion {t.key} has no recorded routing, but others of its micro-batch have")
        told = unpack_experts(t.routing, t.tokens - 1).numpy()
        parts += [told, told[-1:].repeat(length - len(told), axis=0)]
    return np.concatenate(parts)
