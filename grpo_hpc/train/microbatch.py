"""Micro-batches as tensors.

Shapes: T input tokens of a row that this rank works on, N scored tokens of the whole row, n of them on this rank,
S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

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
    padded_lengths = layout.padded([t.tokens - 1 for t in trajectories])
    inputs: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    mask: list[bool] = []
    owners: list[int] = []
    numbers: list[int] = []
    bounds = [0]
    for number, t in enumerate(trajectories):
        padded = padded_lengths[number]
        whole = t.prompt_tokens + t.response_tokens
        filler = padded - (len(whole) - 1)
        inputs += whole[:-1] + [0] * filler
        labels += whole[1:] + [0] * filler
        positions += range(padded)
        first = crc32(f"{t.position}/{t.sample}".encode()) << 24  # room for the longest completion
        numbers += range(first, first + padded)
        owners += [number] * (len(whole) - 1) + [len(trajectories)] * filler
        mask += [False] * (len(t.prompt_tokens) - 1) + [True] * len(t.response_tokens) + [False] * filler
        bounds.append(len(inputs))

    lengths = [len(t.response_tokens) for t in trajectories]
    here = positions_of(layout.context_rank, layout.context, bounds)

    def row(values: list[int] | list[bool]) -> Tensor:
        return torch.tensor(values)[here].to(device)[None]

    def per_token(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    def repeat(values: Sequence[float]) -> Tensor:
        return per_token([value for value, length in zip(values, lengths, strict=True) for _ in range(length)])

    def joined(columns: list[list[float] | None]) -> Tensor | None:
        known = [column for column in columns if column is not None]
        return per_token([x for column in known for x in column]) if len(known) == len(columns) else None

    scored = torch.tensor(mask)
    return PackedBatch(
        input_ids=row(inputs),
        position_ids=row(positions),
        labels=row(labels),
        loss_mask=row(mask),
        scored=(scored.cumsum(0) - 1)[here][scored[here]].to(device),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=device),
        max_seqlen=max(end - start for start, end in pairwise(bounds)),
        advantages=repeat([t.advantage for t in trajectories]),
        weights=repeat([t.token_weight for t in trajectories]),
        rollout_logprobs=per_token([x for t in trajectories for x in t.rollout_logprobs]),
        old_logprobs=joined([t.old_logprobs for t in trajectories]),
        ref_logprobs=joined([t.ref_logprobs for t in trajectories]),
        sequences=Sequences.of(torch.tensor(lengths, device=device)),
        rows=here.to(device),
        sequence_of=torch.tensor(owners)[here].to(device),
        lengths=per_token([t.tokens - 1.0 for t in trajectories]),
        token_numbers=torch.tensor(numbers)[here].to(device),
        experts=_experts(trajectories, padded_lengths, here, device),
    )


def _experts(
    trajectories: Sequence[Trajectory], padded: Sequence[int], here: Tensor, device: torch.device
) -> Tensor | None:
    """Where the tokens of ``here`` must go [T, L * k]; padding goes where the last token of its sequence goes."""
    if all(t.routing is None for t in trajectories):
        return None
    parts = []
    for t, length in zip(trajectories, padded, strict=True):
        if t.routing is None:
            raise ValueError(f"completion {t.key} has no recorded routing, but others of its micro-batch have")
        told = unpack_experts(t.routing, t.tokens - 1)
        parts.append(torch.cat([told, told[-1:].expand(length - len(told), -1)]))
    return torch.cat(parts)[here].to(device)
