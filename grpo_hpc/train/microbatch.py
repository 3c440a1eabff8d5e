"""Micro-batches as tensors.

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
    tokens = torch.tensor([t.tokens - 1 for t in trajectories])  # a sequence's last token is no input
    padded = torch.tensor(layout.padded(tokens.tolist()))
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), padded.cumsum(0)])
    responses = torch.tensor([len(t.response_tokens) for t in trajectories])

    owner = torch.arange(count).repeat_interleave(padded)
    place = torch.arange(len(owner)) - bounds[owner]  # in its sequence
    real = place < tokens[owner]
    scored = real & (place >= (tokens - responses)[owner])
    whole = _column([t.prompt_tokens + t.response_tokens for t in trajectories], np.int64)
    first, last = torch.ones_like(whole, dtype=torch.bool), torch.ones_like(whole, dtype=torch.bool)
    ends = (tokens + 1).cumsum(0)
    first[ends - tokens - 1], last[ends - 1] = False, False
    inputs = torch.zeros_like(place).masked_scatter_(real, whole[last])
    labels = torch.zeros_like(place).masked_scatter_(real, whole[first])
    # 24 bits are room for the longest completion
    numbers = torch.tensor([crc32(f"{t.position}/{t.sample}".encode()) << 24 for t in trajectories])[owner] + place

    here = positions_of(layout.context_rank, layout.context, bounds.tolist())

    def row(values: Tensor) -> Tensor:
        return values[here].to(device)[None]

    def repeat(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(responses).to(device)

    def joined(columns: list[list[float] | None]) -> Tensor | None:
        known = [column for column in columns if column is not None]
        return _column(known, np.float32).to(device) if len(known) == len(columns) else None

    return PackedBatch(
        input_ids=row(inputs),
        position_ids=row(place),
        labels=row(labels),
        loss_mask=row(scored),
        scored=(scored.cumsum(0) - 1)[here][scored[here]].to(device),
        cu_seqlens=bounds.to(device, torch.int32),
        max_seqlen=int(padded.max()),
        advantages=repeat([t.advantage for t in trajectories]),
        weights=repeat([t.token_weight for t in trajectories]),
        rollout_logprobs=_column([t.rollout_logprobs for t in trajectories], np.float32).to(device),
        old_logprobs=joined([t.old_logprobs for t in trajectories]),
        ref_logprobs=joined([t.ref_logprobs for t in trajectories]),
        sequences=Sequences.of(responses.to(device)),
        rows=here.to(device),
        sequence_of=owner.masked_fill(~real, count)[here].to(device),
        lengths=tokens.to(device, torch.float32),
        token_numbers=numbers[here].to(device),
        experts=_experts(trajectories, padded.tolist(), here, device),
    )


def _column(lists: Sequence[list[int]] | Sequence[list[float]], dtype: type[np.number]) -> Tensor:
    """All values one after another. Through numpy, which reads a list several times faster than torch does."""
    return torch.from_numpy(np.concatenate([np.array(values, dtype=dtype) for values in lists]))


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
