"""The LM head: log-probabilities of the labels instead of logits, where labels are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from grpo_hpc.algo.logprob import VocabularyPart, token_logprobs


@dataclass(frozen=True)
class Scoring:
    """What a head is asked to score.

    Attributes:
        labels: [T] next tokens.
        mask: [T] bool, the N positions to score.
        vocabulary: rows of the real vocabulary.
        temperature: of sampling.
        shared_weight: the embedding's matrix, for a head that has none of its own.
        entropy_gradient: the entropies have a gradient too.
    """

    labels: Tensor
    mask: Tensor
    vocabulary: int
    temperature: float
    shared_weight: Tensor | None
    entropy_gradient: bool


class LogprobHead(ColumnParallelLinear):
    """Megatron's output layer that can also score.

    It takes over an output layer that Megatron has built (:mod:`grpo_hpc.models.patches`): all that differs is what a
    call computes. A call it must be, not a use of its weight from outside: Megatron waits in forward hooks for
    parameters that are still on their way from other ranks.
    """

    def forward(self, input_: Tensor, *args: Any, scoring: Scoring | None = None, **kwargs: Any) -> Any:
        """Hidden states [T, 1, H] -> log-probabilities and entropies [2, N], or logits without ``scoring``."""
        if scoring is None:
            return super().forward(input_, *args, **kwargs)
        weight = scoring.shared_weight if self.weight is None else self.weight
        assert weight is not None
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(input_)[:, 0][scoring.mask]
        else:
            hidden = copy_to_tensor_model_parallel_region(input_[:, 0][scoring.mask])
        logprobs, entropy = token_logprobs(
            hidden,
            weight,
            scoring.labels[scoring.mask],
            _vocabulary_part(scoring.vocabulary, weight.shape[0]),
            scoring.temperature,
            # where Megatron sums this weight's gradient in fp32, if it does: micro-batches and chunks meet there
            grad_buffer=getattr(weight, "main_grad", None),
            entropy_gradient=scoring.entropy_gradient,
        )
        return torch.stack((logprobs, entropy))


def _vocabulary_part(vocabulary: int, rows: int) -> VocabularyPart:
    """This tensor-parallel rank's rows of the output matrix, with reductions over the tensor-parallel group."""
    size = mpu.get_tensor_model_parallel_world_size()
    if size == 1:
        return VocabularyPart(0, vocabulary)
    group = mpu.get_tensor_model_parallel_group()

    def reduce(op: Any) -> Any:
        return lambda tensor: torch.distributed.all_reduce(tensor, op=op, group=group)

    return VocabularyPart(
        start=mpu.get_tensor_model_parallel_rank() * rows,
        vocabulary=vocabulary,
        sum=reduce(torch.distributed.ReduceOp.SUM),
        max=reduce(torch.distributed.ReduceOp.MAX),
    )
