"""Micro-batches through Megatron's pipeline schedules."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import unwrap_model
from torch import Tensor

from grpo_hpc.models.micro_batch_context import MicroBatchContext, current_context
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.train.megatron.parallel import over_context, packed_sequences
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.micro_batches import PackedBatch
from grpo_hpc.train.replay import RoutingRecorder, routed_tokens

LossFunction = Callable[[PackedBatch, Tensor], tuple[Tensor, Tensor, Any]]
Progress = Callable[[int, int], None]


def forward_scores(
    chunks: Sequence[PolicyModel],
    batches: Sequence[PackedBatch],
    platform: Platform,
    recorder: RoutingRecorder | None = None,
) -> list[Tensor]:
    """Log-probabilities and entropies [2, N] of each micro-batch; empty but on the last pipeline stage.

    Args:
        recorder: writes down which experts tokens went to.
    """

    def keep(_batch: PackedBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return output.sum(), unused_token_count(), output.detach().float().cpu()

    with platform.megatron(), torch.no_grad(), _evaluating(chunks):
        return run_schedule(chunks, batches, keep, forward_only=True, recorder=recorder)


@contextlib.contextmanager
def _evaluating(chunks: Sequence[PolicyModel]) -> Iterator[None]:
    """Inside, the model is in evaluation mode: nothing is dropped."""
    modes = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    try:
        yield
    finally:
        for chunk, mode in zip(chunks, modes, strict=True):
            chunk.train(mode)


def run_schedule(
    chunks: Sequence[Any],
    batches: Sequence[PackedBatch],
    loss: LossFunction,
    forward_only: bool,
    progress: Progress | None = None,
    recorder: RoutingRecorder | None = None,
    step: int = 0,
) -> list[Any]:
    """Megatron's schedule for this pipeline over ``batches``: in turn, 1F1B, or interleaved where chunks are several.

    Args:
        chunks: this rank's parts of the model, wrapped in DDP or not.
        loss: of one micro-batch, from what the last stage gives.
        step: a number for the optimizer step, on which dropout depends.

    Returns:
        what ``loss`` reported of each micro-batch; empty but on the last stage.
    """

    def forward_step(iterator: Any, chunk: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        number, batch = next(iterator)
        model: PolicyModel = unwrap_model(chunk)
        output = chunk(
            batch.input_ids,
            batch.position_ids,
            None,
            labels=batch.labels,
            loss_mask=batch.loss_mask,
            packed_seq_params=packed_sequences(batch),
            context=context_of(model, number, batch, step, recorder),
        )
        if model.post_process:
            output = over_context(output, batch)
        return output, partial(loss, batch)

    # every chunk goes through all micro-batches: the first says how far the step has come
    iterators = [_announced(batches, progress), *(enumerate(batches) for _ in chunks[1:])]
    reported: list[Any] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks),
        num_microbatches=len(batches),
        seq_length=max(batch.tokens for batch in batches),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    if (left := current_context()) is not None:
        raise RuntimeError(f"micro-batch {left.number} is still the current one behind the last of {len(batches)}")
    if recorder is not None:
        recorder.check_complete()
    return reported


def context_of(
    model: PolicyModel, number: int, batch: PackedBatch, step: int = 0, recorder: RoutingRecorder | None = None
) -> MicroBatchContext:
    """What the modules of ``model`` must know of ``batch``, the micro-batch ``number``."""
    experts = model.shape.experts
    routed = None if experts is None else routed_tokens(batch, experts.topk)
    record = None if recorder is None else recorder.note
    return MicroBatchContext(number, step, batch.token_numbers, routed, record)


def _announced(batches: Sequence[PackedBatch], progress: Progress | None) -> Iterator[tuple[int, PackedBatch]]:
    for done, batch in enumerate(batches):
        if progress is not None:
            progress(done, len(batches))
        yield done, batch


def sum_gradients(models: list[Any], _num_tokens: Tensor | None, *args: Any, **kwargs: Any) -> None:
    """Complete the gradients without Megatron's division by token counts: our weights are the denominator already."""
    finalize_model_grads(models, None, *args, **kwargs)


def unused_token_count() -> Tensor:
    """Megatron adds this up over micro-batches; :func:`sum_gradients` does not use it."""
    return torch.tensor(1, dtype=torch.int)
