"""The order in which prompts are sampled."""

from __future__ import annotations

import random


class PromptSampler:
    """An endless order of row indices in which a counter is the whole state.

    Positions run on over epochs; every epoch holds every row once. Each epoch is shuffled anew, but a row comes back
    only ``count`` positions after its last turn, so a rollout that crosses the end of an epoch holds no row twice (as
    long as there are enough rows). The order depends on the seed and on ``count``, which is constant within a run.

    Args:
        rows_count: number of rows, at least 1.
        seed: another seed, another order.
        shuffle: False gives file order in every epoch.
    """

    def __init__(self, rows_count: int, seed: int, shuffle: bool = True) -> None:
        self._rows_count, self._seed, self._shuffle = rows_count, seed, shuffle
        self._gap = 0
        self._epoch = 0
        self._order: list[int] = []

    def indices(self, start: int, count: int) -> list[int]:
        """Row indices of the positions ``start`` to ``start + count - 1``."""
        found: list[int] = []
        while len(found) < count:
            epoch, offset = divmod(start + len(found), self._rows_count)
            found += self._epoch_order(epoch, count)[offset : offset + count - len(found)]
        return found

    def _epoch_order(self, epoch: int, count: int) -> list[int]:
        if not self._shuffle:
            return list(range(self._rows_count))
        gap = min(count, self._rows_count)
        if not self._order or gap != self._gap or epoch < self._epoch:
            self._gap, self._epoch = gap, 0
            self._order = list(range(self._rows_count))
            random.Random(f"{self._seed}/0").shuffle(self._order)
        while self._epoch < epoch:
            self._epoch += 1
            self._order = _shuffled_apart(self._order, gap, random.Random(f"{self._seed}/{self._epoch}"))
        return self._order


def _shuffled_apart(previous: list[int], gap: int, chance: random.Random) -> list[int]:
    """A random order in which every row stands at least ``gap`` positions after its place in ``previous``.

    Position q may take any row whose previous place is at most ``len(previous) + q - gap``: those are the pool, which
    grows by one row per position and is drawn from uniformly.
    """
    free = len(previous) - gap
    pool, order = previous[:free], []
    for position in range(len(previous)):
        pool += previous[free + position : free + position + 1]
        drawn = chance.randrange(len(pool))
        pool[drawn], pool[-1] = pool[-1], pool[drawn]
        order.append(pool.pop())
    return order
