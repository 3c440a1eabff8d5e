"""Packing completions into micro-batches.

Shapes: T input tokens of all packed sequences, N scored tokens among them, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from grpo_hpc.algo.loss import sample_mean_weights
from grpo_hpc.rollout.trajectory import Trajectory


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: sequences one after another in a single row, without padding.

    Each sequence's last token is no input (nothing follows it), so position ``t`` predicts ``labels[t]``.

    Attributes:
        input_ids, position_ids, labels: [1, T]; positions start at 0 in each sequence.
        loss_mask: [1, T] bool, True where the label is a response token: the N scored positions.
        cu_seqlens: [S+1] int32, where sequences begin.
        max_seqlen: longest sequence.
        advantages, weights, rollout_logprobs: [N] in packing order; a weighted sum over all micro-batches of an
            optimizer step is its loss.
        old_logprobs, ref_logprobs: [N] or None.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    loss_mask: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    advantages: Tensor
    weights: Tensor
    rollout_logprobs: Tensor
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]


def pack(trajectories: Sequence[Trajectory], samples: int, device: torch.device) -> PackedBatch:
    """Pack ``trajectories`` for an optimizer step of ``samples`` completions in all."""
    inputs: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    mask: list[bool] = []
    bounds = [0]
    for t in trajectories:
        whole = t.prompt_tokens + t.response_tokens
        inputs += whole[:-1]
        labels += whole[1:]
        positions += range(len(whole) - 1)
        mask += [False] * (len(t.prompt_tokens) - 1) + [True] * len(t.response_tokens)
        bounds.append(len(inputs))

    lengths = [len(t.response_tokens) for t in trajectories]

    def row(values: list[int] | list[bool]) -> Tensor:
        return torch.tensor(values, device=device)[None]

    def per_token(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    def repeat(values: Sequence[float]) -> Tensor:
        return per_token([value for value, length in zip(values, lengths, strict=True) for _ in range(length)])

    def joined(columns: list[list[float] | None]) -> Tensor | None:
        known = [column for column in columns if column is not None]
        return per_token([x for column in known for x in column]) if len(known) == len(columns) else None

    return PackedBatch(
        input_ids=row(inputs),
        position_ids=row(positions),
        labels=row(labels),
        loss_mask=row(mask),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=device),
        max_seqlen=max(end - start for start, end in pairwise(bounds)),
        advantages=repeat([t.advantage for t in trajectories]),
        weights=repeat(sample_mean_weights(lengths, samples)),
        rollout_logprobs=per_token([x for t in trajectories for x in t.rollout_logprobs]),
        old_logprobs=joined([t.old_logprobs for t in trajectories]),
        ref_logprobs=joined([t.ref_logprobs for t in trajectories]),
    )


def with_gradient(trajectories: Sequence[Trajectory], at_least: int) -> list[Trajectory]:
    """The completions that the surrogate loss has a gradient for: those whose advantage is not 0.

    Leaving the others out of forward and backward changes no update, because ``pack`` is told how many completions
    the step has in all. ``at_least`` are kept, so that every data-parallel rank has something to do.
    """
    teaching = sum(t.advantage != 0.0 for t in trajectories)
    return sorted(trajectories, key=lambda t: t.advantage == 0.0)[: max(at_least, teaching)]


def share_of(trajectories: Sequence[Trajectory], rank: int, ranks: int) -> list[Trajectory]:
    """The completions that data-parallel ``rank`` trains on, longest first.

    Sorted by length and dealt back and forth, so that every rank has nearly the same number of tokens and the
    sequences of one micro-batch are alike. Who trains on what does not change the loss.
    """
    longest_first = sorted(trajectories, key=lambda t: (-t.tokens, t.position, t.sample))
    mine = []
    for start in range(0, len(longest_first), 2 * ranks):
        there, back = longest_first[start : start + ranks], longest_first[start + ranks : start + 2 * ranks]
        mine += there[rank : rank + 1] + back[::-1][rank : rank + 1]
    return mine


def micro_batches(mine: Sequence[Trajectory], size: int, samples: int, device: torch.device) -> list[PackedBatch]:
    """Pack ``mine`` in micro-batches of ``size`` completions."""
    return [pack(mine[at : at + size], samples, device) for at in range(0, len(mine), size)]
