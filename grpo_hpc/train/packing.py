"""Who trains on what: completions are dealt over data-parallel ranks and cut into micro-batches.

Every rank computes the plan of all ranks from the same records, so nothing is communicated. All ranks get the same
number of micro-batches: experts exchange tokens between data-parallel ranks in each of them, and a rank with one less
would leave the others waiting.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.trajectory import Trajectory

MicroBatch = list[Trajectory]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class RowLayout:
    """How a packed row is cut, which decides how its sequences are padded.

    Attributes:
        context: context-parallel ranks that share every sequence.
        context_rank: this rank among them.
        sequence: ranks that split the row between layers (tensor-parallel size with sequence parallelism, else 1).
    """

    context: int = 1
    context_rank: int = 0
    sequence: int = 1

    @property
    def sequence_multiple(self) -> int:
        """Length of every sequence is padded to it: each rank takes one piece from its head and one from its tail."""
        return 2 * self.context if self.context > 1 else 1

    @property
    def row_multiple(self) -> int:
        """Length of the row is padded to it, at the end of its last sequence."""
        return self.sequence_multiple * self.sequence

    def padded(self, tokens: Sequence[int]) -> list[int]:
        """Lengths of the sequences of a row with their padding."""
        lengths = [_up(count, self.sequence_multiple) for count in tokens]
        return [*lengths[:-1], lengths[-1] + _up(sum(lengths), self.row_multiple) - sum(lengths)]


WHOLE_ROW = RowLayout()
"""One rank holds the whole row, and nothing is padded."""


@dataclass(frozen=True)
class Packing:
    """How completions become micro-batches: by number or by tokens.

    Attributes:
        size: completions per micro-batch; without effect when ``tokens`` is given.
        tokens: most input tokens of a micro-batch, padding included, over all context-parallel ranks.
        layout: how a row is cut.
        multiple: the number of micro-batches on a rank is a multiple of it (pipeline stages, when they interleave).
    """

    size: int
    tokens: int | None = None
    layout: RowLayout = WHOLE_ROW
    multiple: int = 1

    def deal(self, trajectories: Sequence[Trajectory], ranks: int) -> list[list[MicroBatch]]:
        """The micro-batches of each of ``ranks`` data-parallel ranks, the same number for all.

        Who trains on what changes nothing in the loss. ``len(trajectories)`` must be a multiple of
        ``ranks * self.multiple``.

        Raises:
            ConfigError: a sequence alone has more than ``tokens``.
        """
        longest_first = sorted(trajectories, key=lambda t: (-t.tokens, t.position, t.sample))
        if self.tokens is None:
            return self._by_size(longest_first, ranks)
        return self._by_tokens(longest_first, self.tokens, ranks)

    def _by_size(self, longest_first: list[Trajectory], ranks: int) -> list[list[MicroBatch]]:
        """Dealt back and forth, so that ranks have nearly the same tokens and a micro-batch's sequences are alike."""
        shares = [_dealt(longest_first, rank, ranks) for rank in range(ranks)]
        count = self._whole(-(-len(shares[0]) // self.size))
        return [_cut(mine, count) for mine in shares]

    def _whole(self, micro_batches: int) -> int:
        return _up(micro_batches, self.multiple)

    def _by_tokens(self, longest_first: list[Trajectory], budget: int, ranks: int) -> list[list[MicroBatch]]:
        """As few micro-batches as fit, of nearly equal size; on every rank the k-th one is about as long."""
        lengths = [_up(t.tokens - 1, self.layout.sequence_multiple) for t in longest_first]
        budget -= self.layout.row_multiple - self.layout.sequence_multiple  # the row's own padding
        if lengths[0] > budget:
            raise ConfigError(
                f"a sequence of {longest_first[0].tokens} tokens does not fit into a micro-batch: "
                f"batch.max_tokens_per_micro_batch = {self.tokens}",
                f"give at least {longest_first[0].tokens + self.layout.row_multiple}, or bound the lengths",
            )
        per_rank = self._whole(-(-sum(lengths) // (budget * ranks)))
        while True:
            bins = _even_bins(lengths, per_rank * ranks)
            if max(load for load, _ in bins) <= budget:
                break
            per_rank += self.multiple
        longest_bins = sorted(bins, key=lambda found: (-found[0], found[1]))
        batches = [[longest_first[n] for n in members] for _, members in longest_bins]
        return [_dealt(batches, rank, ranks) for rank in range(ranks)]


def with_gradient(
    trajectories: Sequence[Trajectory], multiple_of: int, without_advantage: bool = False
) -> list[Trajectory]:
    """The completions that the objective has a gradient for.

    Those whose weight is not 0 (they are not filtered out), and whose advantage is not 0 unless the objective teaches
    ``without_advantage``. Leaving the others out of forward and backward changes no update, because weights were fixed
    for all of them. Some are kept where needed to give a multiple of ``multiple_of``, and at least that many, so that
    every data-parallel rank has the same number of micro-batches.
    """

    def idle(t: Trajectory) -> bool:
        return t.token_weight == 0.0 or (t.advantage == 0.0 and not without_advantage)

    teaching = sum(not idle(t) for t in trajectories)
    return sorted(trajectories, key=idle)[: _up(max(1, teaching), multiple_of)]


def packing_metrics(dealt: list[list[MicroBatch]], layout: RowLayout) -> dict[str, float]:
    """How well the rows of one optimizer step are filled, over all ranks."""
    rows = [[sum(layout.padded([t.tokens - 1 for t in batch])) for batch in mine] for mine in dealt]
    held = sum(t.tokens - 1 for mine in dealt for batch in mine for t in batch)
    total = sum(map(sum, rows))
    return {
        "packing/micro_batches": float(len(rows[0])),
        "packing/tokens_per_micro_batch": held / sum(map(len, rows)),
        "packing/padding_fraction": 1 - held / total,
        "packing/imbalance": max(map(sum, rows)) * len(rows) / total - 1,
    }


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _cut(items: list[_Item], count: int) -> list[list[_Item]]:
    """``items`` in ``count`` runs whose lengths differ by one at most."""
    bounds = [len(items) * n // count for n in range(count + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]


def _dealt(items: Sequence[_Item], rank: int, ranks: int) -> list[_Item]:
    """What ``rank`` gets when ``items`` are dealt to the ranks in order, then in reverse order, and so on."""
    mine: list[_Item] = []
    for start in range(0, len(items), 2 * ranks):
        there, back = items[start : start + ranks], items[start + ranks : start + 2 * ranks]
        mine += [*there[rank : rank + 1], *back[::-1][rank : rank + 1]]
    return mine


def _even_bins(lengths: list[int], count: int) -> list[tuple[int, list[int]]]:
    """Indices of ``lengths``, given in falling order, in ``count`` bins: each goes to the least loaded so far.

    Graham's longest-processing-time rule: the fullest bin is at most 4/3 of the best possible (SIAM J. Appl. Math. 17,
    1969).
    """
    bins: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(count)]
    for index, length in enumerate(lengths):
        load, number, members = heapq.heappop(bins)
        heapq.heappush(bins, (load + length, number, [*members, index]))
    return [(load, members) for load, _, members in bins]
