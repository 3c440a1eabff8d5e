"""What a rank receives while weights are streamed: to every rank, and to the first alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from grpo_hpc.models.movers import local_parameters
from grpo_hpc.models.transport import ToFirstRank
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy


@contextlib.contextmanager
def received() -> Iterator[list[int]]:
    """Inside, the bytes of every message from other ranks are written down."""
    real = {name: getattr(dist, name) for name in ("broadcast", "all_gather", "recv", "gather")}
    sizes: list[int] = []

    def broadcast(tensor: Tensor, source: int, group: Any) -> None:
        real["broadcast"](tensor, source, group=group)
        if dist.get_rank() != source:
            sizes.append(tensor.nbytes)

    def all_gather(parts: list[Tensor], own: Tensor, group: Any) -> None:
        real["all_gather"](parts, own, group=group)
        sizes.append(own.nbytes * (group.size() - 1))

    def recv(tensor: Tensor, source: int, group: Any) -> None:
        real["recv"](tensor, source, group=group)
        sizes.append(tensor.nbytes)

    def gather(own: Tensor, parts: list[Tensor] | None, target: int, group: Any) -> None:
        real["gather"](own, parts, target, group=group)
        sizes.append(own.nbytes * (group.size() - 1) if parts else 0)

    for counted in (broadcast, all_gather, recv, gather):
        setattr(dist, counted.__name__, counted)
    try:
        yield sizes
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def check_export(policy: TrainedPolicy) -> None:
    """An export reaches the first rank alone; a sync sends no rank a byte that it has."""
    from gradients import everybodys

    exporter = policy.exporter
    with received() as everywhere:
        want = {name: value.clone() for name, value in exporter.tensors()}
    with received() as to_first:
        got = {name: value.clone() for name, value in exporter.tensors(ToFirstRank())}
    streamed = {entry.name for bucket in exporter.buckets for entry in bucket}
    held = sum(p.nbytes for name, p in local_parameters(policy.chunks).items() if name in streamed)
    facts = everybodys((held, sum(everywhere), sum(to_first), replica()))
    whole = facts[0][0] + facts[0][2]
    for rank, (own, in_sync, in_export, (dense, expert)) in enumerate(facts):
        assert own + in_sync == whole, f"rank {rank} holds {own} bytes of {whole} and was sent {in_sync}"
        assert rank == 0 or in_export <= whole / 2, f"rank {rank} was sent {in_export} bytes of {whole}"
        assert not (dense and expert and in_export), f"rank {rank} has nothing to do with the export"
    if dist.get_rank() == 0:
        assert got.keys() == want.keys() and all(torch.equal(value, want[name]) for name, value in got.items())
    else:
        assert not got


def replica() -> tuple[int, int]:
    """Number of the copy of dense layers and of experts that this rank is a part of."""
    return mpu.get_data_parallel_rank(with_context_parallel=True), mpu.get_expert_data_parallel_rank()
