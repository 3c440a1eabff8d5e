"""How shards of the model's parameters travel to the ranks that need them whole: to all of them, or to the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor


class Transport(Protocol):
    """Where shards go: first along the pipeline, then along the ranks with other experts, then together."""

    def takes_part(self, experts: bool) -> bool:
        """Whether this rank has anything to do for parameters of its kind."""

    def pass_on(
        self, own: Tensor | None, owner: int | None, empty: Callable[[], Tensor], group: dist.ProcessGroup
    ) -> Tensor | None:
        """What rank ``owner`` of ``group`` has as ``own``, where it is needed; ``own`` if nobody there has it."""

    def goes_on(self, group: dist.ProcessGroup) -> bool:
        """Whether this rank is on the way that is left after ``group``."""

    def join(self, shard: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
        """``shard`` of all ranks of ``group`` in rank order, where it is needed; elsewhere nothing."""


class ToEveryRank:
    """Nothing is sent to a rank that holds it: replicas of a shard (data and context parallel) never talk."""

    def takes_part(self, experts: bool) -> bool:
        return True

    def pass_on(
        self, own: Tensor | None, owner: int | None, empty: Callable[[], Tensor], group: dist.ProcessGroup
    ) -> Tensor | None:
        if owner is None or group.size() == 1:
            return own
        # what a rank has may be its own parameter, which must not be written to
        flat = own if own is not None and group.rank() == owner else empty()
        dist.broadcast(flat, dist.get_global_rank(group, owner), group=group)
        return flat

    def goes_on(self, group: dist.ProcessGroup) -> bool:
        return True

    def join(self, shard: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
        shards = [torch.empty_like(shard) for _ in range(group.size())]
        dist.all_gather(shards, shard, group=group)
        return shards


class ToFirstRank:
    """Only the first replica takes part, and only the first rank ever holds more than a shard."""

    def takes_part(self, experts: bool) -> bool:
        if experts:
            return int(mpu.get_expert_data_parallel_rank()) == 0
        return int(mpu.get_data_parallel_rank(with_context_parallel=True)) == 0

    def pass_on(
        self, own: Tensor | None, owner: int | None, empty: Callable[[], Tensor], group: dist.ProcessGroup
    ) -> Tensor | None:
        if not owner:
            return own
        if group.rank() == owner and own is not None:
            dist.send(own, dist.get_global_rank(group, 0), group=group)
        if group.rank() != 0:
            return None
        flat = empty()
        dist.recv(flat, dist.get_global_rank(group, owner), group=group)
        return flat

    def goes_on(self, group: dist.ProcessGroup) -> bool:
        return group.rank() == 0

    def join(self, shard: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
        first = group.rank() == 0
        shards = [torch.empty_like(shard) for _ in range(group.size())] if first else None
        dist.gather(shard, shards, dist.get_global_rank(group, 0), group=group)
        return shards or []
