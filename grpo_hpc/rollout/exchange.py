"""Payloads on their way: each goes once, from the rank that sampled it to the data-parallel rank that trains it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.distributed as dist

from grpo_hpc.control import Control
from grpo_hpc.rollout.sample import Key, Sample, from_payloads, keys_of, payload_bytes


class Exchange:
    """Delivers samples to data-parallel ranks; collective over all ranks.

    Args:
        data_rank: number of this rank's data-parallel replica. The ranks of one replica, whatever they split the model
            by, all get what it trains: the first of them from the owner, the others from the first.
    """

    def __init__(self, control: Control, data_rank: int) -> None:
        self._control, self.data_rank = control, data_rank
        of_rank = control.gather(data_rank, "every rank's place in the layout")
        self.replicas = max(of_rank) + 1
        members = [[rank for rank, its in enumerate(of_rank) if its == replica] for replica in range(self.replicas)]
        self._leaders = np.array([ranks[0] for ranks in members])
        self._members = members[data_rank]
        self._replica = control.subgroup(members, data_rank)
        self.moved = 0  # bytes that this rank has sent to leaders so far

    @property
    def leads(self) -> bool:
        """Whether this rank is the first of its replica."""
        return self._members[0] == self._control.rank

    def deliver(self, held: Mapping[Key, Sample], table: np.ndarray, to: np.ndarray) -> dict[Key, Sample]:
        """What this rank's replica trains, in the order of ``table``.

        Args:
            held: samples of this rank, at least those that ``table`` says it owns.
            table: summaries of the samples that travel, the same on every rank.
            to: int [B], the data-parallel rank that each of them goes to.
        """
        leaders, sizes = self._leaders[to], payload_bytes(table)
        me = self._control.rank
        travels = leaders != table["owner"]
        order = np.lexsort((np.arange(len(table)), table["owner"], leaders))
        leaving = [row for row in order if travels[row] and table["owner"][row] == me]
        coming = [row for row in order if travels[row] and leaders[row] == me]
        out = np.bincount(leaders[leaving], sizes[leaving], self._control.size).astype(np.int64)
        into = np.bincount(table["owner"][coming], sizes[coming], self._control.size).astype(np.int64)
        sent = _flat(held[key].payload() for key in keys_of(table[leaving]))
        arrived = self._control.all_to_all(sent, out, into, "completions on their way to where they are trained")
        self.moved += len(sent)
        found = from_payloads(table[coming], arrived.numpy())
        found |= {key: held[key] for key in keys_of(table[~travels & (table["owner"] == me) & (leaders == me)])}
        return self._shared(found, table[to == self.data_rank])

    def _shared(self, found: dict[Key, Sample], mine: np.ndarray) -> dict[Key, Sample]:
        """The leader's samples on every rank of its replica."""
        if len(self._members) == 1:
            return {key: found[key] for key in keys_of(mine)}
        total = int(payload_bytes(mine).sum())
        flat = (
            _flat(found[key].payload() for key in keys_of(mine))
            if self.leads
            else torch.empty(total, dtype=torch.uint8)
        )
        if total:
            dist.broadcast(flat, src=self._members[0], group=self._replica)
        return from_payloads(mine, flat.numpy())


def _flat(payloads: Iterable[bytes]) -> torch.Tensor:
    joined = bytearray().join(payloads)
    return torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0, dtype=torch.uint8)
