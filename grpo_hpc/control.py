"""What ranks must tell each other or agree about: small messages on the host, apart from what moves between GPUs.

They travel over a gloo group of their own, so nothing of them passes through GPU memory, and they have a limit of
their own: ranks wait here for the slowest rollout, which may take longer than any collective of a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from grpo_hpc.errors import GrpoHpcError

_Message = TypeVar("_Message")


class Control:
    """All ranks of the run. Every method is collective; ``what`` names what is waited for, should it take too long.

    Args:
        limit: the longest that a rank waits for the others.

    Attributes:
        group: gloo's, of all ranks.
    """

    def __init__(self, limit: timedelta) -> None:
        self._limit = limit
        self.group = dist.new_group(backend="gloo", timeout=limit)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides."""
        return self.rank == 0

    def gather(self, mine: _Message, what: str) -> list[_Message]:
        """Everybody's message on every rank, in rank order."""
        found: list[Any] = [None] * self.size
        with self.waiting(what):
            dist.all_gather_object(found, mine, group=self.group)
        return found

    def gather_at_first(self, mine: _Message, what: str) -> list[_Message]:
        """Everybody's message on the first rank, in rank order; nothing on the others."""
        found: list[Any] | None = [None] * self.size if self.first else None
        with self.waiting(what):
            dist.gather_object(mine, found, group=self.group)
        return found or []

    def gather_rows(self, mine: np.ndarray, what: str) -> np.ndarray:
        """Everybody's rows of one structured array on every rank, in rank order, as bytes and never pickled."""
        counts = [int(count) for count in self._gathered(torch.tensor([len(mine)]), what)]
        sent = torch.zeros(max(counts) * mine.dtype.itemsize, dtype=torch.uint8)
        sent[: mine.nbytes] = torch.from_numpy(np.frombuffer(bytearray(mine.tobytes()), dtype=np.uint8))
        parts = [part.numpy().view(mine.dtype) for part in self._gathered(sent, what)]
        return np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])

    def from_first(self, decide: Callable[[], _Message], what: str) -> _Message:
        """What the first rank decides, on every rank. An error of its own is raised on all of them."""
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = decide()
            except GrpoHpcError as error:
                told[1] = error
        with self.waiting(what):
            dist.broadcast_object_list(told, src=0, group=self.group)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def any(self, mine: bool, what: str) -> bool:
        """Whether it is so on some rank."""
        flag = torch.tensor([int(mine)])
        with self.waiting(what):
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag.item())

    def sum(self, mine: np.ndarray, what: str) -> np.ndarray:
        """The sum of everybody's numbers, on every rank."""
        total = torch.from_numpy(mine.copy())
        with self.waiting(what):
            dist.all_reduce(total, group=self.group)
        return total.numpy()

    def subgroup(self, members: list[list[int]], number: int) -> dist.ProcessGroup:
        """A gloo group of ``members[number]``, in which this rank is. Every rank names the same lists."""
        groups = [dist.new_group(ranks, backend="gloo", timeout=self._limit) for ranks in members]
        return groups[number]

    def shared_by(self, group: dist.ProcessGroup, first: int) -> Callable[[_Message | None], _Message]:
        """A function that gives all ranks of ``group`` the message of the rank ``first``; collective among them."""

        def share(mine: _Message | None) -> _Message:
            told: list[Any] = [mine]
            with self.waiting(f"rank {first}, the first of its replica"):
                dist.broadcast_object_list(told, src=first, group=group)
            found: _Message = told[0]
            return found

        return share

    # -- without waiting for anybody -------------------------------------------------------------------------------

    def claim(self, what: str) -> int:
        """The next number of ``what``, from 0: no two ranks get the same. Not collective."""
        return int(_store().add(f"grpo_hpc/{what}", 1)) - 1

    def say(self, what: str) -> None:
        """Let every rank that asks know of ``what``. Not collective."""
        _store().set(f"grpo_hpc/{what}", "said")

    def said(self, what: str) -> bool:
        """Whether some rank has said ``what``. Not collective."""
        return bool(_store().check([f"grpo_hpc/{what}"]))

    def wait(self, what: str) -> None:
        """Until every rank has come here."""
        self.any(False, what)

    def _gathered(self, mine: torch.Tensor, what: str) -> list[torch.Tensor]:
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with self.waiting(what):
            dist.all_gather(parts, mine, group=self.group)
        return parts

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around a collective over ``group``: should it take too long or a rank be gone, says what was waited for."""
        try:
            yield
        except RuntimeError as error:  # gloo: a rank is gone, or later than the limit
            raise RuntimeError(f"rank {self.rank} waited for {what}, at most {self._limit}: {error}") from None


def _store() -> Any:
    """Where the ranks of this process group have met."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
