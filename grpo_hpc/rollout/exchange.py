"""Payloads on their way: each goes once, from the rank that sampled it to the data-parallel rank that trains it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from grpo_hpc.control import Control
from grpo_hpc.rollout.sample import Key, Sample, keys_of

_WAITED_FOR = "completions on their way to where they are trained"

# in this order within a payload: the widest first, so that each begins where its type allows
_ARRAYS = (
    ("tokens", np.int32),
    ("logprobs", np.float32),
    ("versions", np.int32),
    ("turns", np.int32),
    ("turn_rewards", np.float32),
    ("routing", None),
    ("mask", np.bool_),
)


class Exchange:
    """Delivers samples to data-parallel ranks; collective over all ranks.

    Args:
        data_rank: number of this rank's data-parallel replica. The ranks of one replica, whatever they split the model
            by, all get what it trains: the first of them from the owner, the others from the first.
    """

    def __init__(self, control: Control, data_rank: int) -> None:
        self._control, self.data_rank = control, data_rank
        of_rank = control.gather(data_rank, "every rank's place in the layout")
        members = [[rank for rank, its in enumerate(of_rank) if its == replica] for replica in range(max(of_rank) + 1)]
        self._leaders = np.array([ranks[0] for ranks in members])
        self._members = members[data_rank]
        self._replica = control.subgroup(members, data_rank)
        self.moved = 0  # bytes that this rank has sent to leaders so far

    def deliver(
        self, held: Mapping[Key, Sample], table: np.ndarray, steps: Sequence[Sequence[Sequence[np.ndarray]]]
    ) -> dict[Key, Sample]:
        """What this rank's replica trains.

        Args:
            held: samples of this rank, at least those that ``table`` says it owns and ``steps`` name.
            table: summaries, the same on every rank.
            steps: rows of ``table`` by optimizer step, replica and micro-batch; each at most once.
        """
        keys, me = keys_of(table), self._control.rank
        shares = [np.concatenate([rows for step in steps for rows in step[to]]) for to in range(len(self._leaders))]
        leader = np.full(len(table), -1)
        for to, rows in zip(self._leaders, shares, strict=True):
            leader[rows] = to
        travels = (leader >= 0) & (leader != table["owner"])
        leaving = _in_order_of(leader, travels & (table["owner"] == me))
        coming = _in_order_of(table["owner"], travels & (leader == me))
        sizes = payload_bytes(table)
        out = np.bincount(leader[leaving], sizes[leaving], self._control.size).astype(np.int64)
        into = np.bincount(table["owner"][coming], sizes[coming], self._control.size).astype(np.int64)
        arrived = self._all_to_all(payloads(held[keys[row]] for row in leaving), out, into)
        found = from_payloads([keys[row] for row in coming], table[coming], arrived)
        mine = shares[self.data_rank]
        return self._shared({**held, **found}, [keys[row] for row in mine], table[mine])

    def _all_to_all(self, mine: np.ndarray, out: np.ndarray, into: np.ndarray) -> np.ndarray:
        """Bytes from every rank to every rank; ``out`` and ``into`` say how many to and from each."""
        found = torch.empty(int(into.sum()), dtype=torch.uint8)
        with self._control.waiting(_WAITED_FOR):
            dist.all_to_all_single(
                found, torch.from_numpy(mine), into.tolist(), out.tolist(), group=self._control.group
            )
        self.moved += len(mine)
        return found.numpy()

    def _shared(self, found: Mapping[Key, Sample], keys: Sequence[Key], table: np.ndarray) -> dict[Key, Sample]:
        """The leader's samples on every rank of its replica."""
        if len(self._members) == 1:
            return {key: found[key] for key in keys}
        flat = torch.empty(int(payload_bytes(table).sum()), dtype=torch.uint8)
        if self._members[0] == self._control.rank:
            flat = torch.from_numpy(payloads(found[key] for key in keys))
        with self._control.waiting(_WAITED_FOR):
            dist.broadcast(flat, src=self._members[0], group=self._replica)
        return from_payloads(keys, table, flat.numpy())


def _in_order_of(rank: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The ``chosen`` rows, those of rank 0 first."""
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(rank[rows], kind="stable")]


# -- a sample as bytes ---------------------------------------------------------------------------------------------


def payload_bytes(table: np.ndarray) -> np.ndarray:
    """Bytes of each payload: int64 [B]."""
    tokens = table["tokens"].astype(np.int64)
    routing = np.where(table["routing"] > 0, (tokens - 1) * table["routing"] * table["wide"], 0)
    return 5 * tokens + 8 * table["sampled"] + 8 * table["turns"] + 4 * table["turn_rewards"] + routing


def payloads(samples: Iterable[Sample]) -> np.ndarray:
    """All arrays of all ``samples``, one after another: uint8."""
    parts = (np.ascontiguousarray(getattr(sample, name)).tobytes() for sample in samples for name, _ in _ARRAYS)
    return np.frombuffer(bytearray().join(parts), np.uint8)


def from_payloads(keys: Sequence[Key], table: np.ndarray, flat: np.ndarray) -> dict[Key, Sample]:
    """The samples called ``keys`` that ``table`` summarises: views of ``flat``, which has their payloads in order."""
    starts = payload_bytes(table).cumsum() - payload_bytes(table)
    return {
        key: _from_payload(key, row, flat, start) for key, row, start in zip(keys, table, starts.tolist(), strict=True)
    }


def _from_payload(key: Key, row: np.ndarray, flat: np.ndarray, at: int) -> Sample:
    tokens, sampled, turns, width = (int(row[name]) for name in ("tokens", "sampled", "turns", "routing"))
    shapes: dict[str, tuple[int, ...]] = {"tokens": (tokens,), "logprobs": (sampled,), "versions": (sampled,)}
    shapes |= {"turns": (turns, 2), "turn_rewards": (int(row["turn_rewards"]),)}
    shapes |= {"routing": (tokens - 1, width) if width else (0, 0), "mask": (tokens,)}
    arrays = {}
    for name, dtype in _ARRAYS:
        kind = np.dtype(dtype or {1: np.uint8, 2: np.int16}[int(row["wide"])])
        arrays[name] = np.ndarray(shapes[name], kind, flat, at)
        at += arrays[name].nbytes
    return Sample(key, **arrays)
