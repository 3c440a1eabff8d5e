"""Who trains on what: completions are dealt over data-parallel ranks and cut into micro-batches.

Every rank computes the plan of all ranks from the same summaries, so nothing is communicated. All ranks get the same
number of micro-batches: experts exchange tokens between data-parallel ranks in each of them, and a rank with one less
would leave the others waiting. For the same reason the k-th micro-batch costs about as much on every rank.

A table is a structured array of one row a sequence, with the fields ``position``, ``sample`` and ``branch``, which
order completions totally, ``tokens`` of the whole sequence, ``sampled`` tokens among them, ``advantage``,
``turn_advantage`` and ``token_weight``. A micro-batch is an int64 array of row numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

import numpy as np

from grpo_hpc.errors import ConfigError
from grpo_hpc.models.flops import Cost
from grpo_hpc.rollout.sample import episode_of

MicroBatch = np.ndarray


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
        cost: of a sequence (:func:`grpo_hpc.models.flops.sequence_cost`), which is what ranks share evenly.
        tokens: most input tokens of a micro-batch, padding included, over all context-parallel ranks.
        layout: how a row is cut.
        multiple: the number of micro-batches on a rank is a multiple of it (pipeline stages, when they interleave).
    """

    size: int
    cost: Cost
    tokens: int | None = None
    layout: RowLayout = WHOLE_ROW
    multiple: int = 1

    def deal(self, table: np.ndarray, ranks: int) -> list[list[MicroBatch]]:
        """The micro-batches of each of ``ranks`` data-parallel ranks, the same number for all, and none empty.

        Who trains on what changes nothing in the loss. A number that is no multiple of ``ranks * self.multiple`` may
        ask for more micro-batches than there are completions: five for two ranks, one by one, are three on each. Then
        there are as many as can be filled, and the cheapest completions share one, beyond ``size`` or ``tokens``.

        Raises:
            ConfigError: a sequence alone has more than ``tokens``, or there are fewer completions than
                ``ranks * self.multiple``.
        """
        if self.tokens is None:
            return self._by_size(_falling(self.costs(table), table), ranks)
        return self._by_tokens(table, _falling(table["tokens"], table), self.tokens, ranks)

    def costs(self, table: np.ndarray) -> np.ndarray:
        """Forward operations of each completion of ``table``, whose last token is no input: float64."""
        return self.cost.of(table["tokens"] - 1.0, table["sampled"].astype(np.float64))

    def _by_size(self, order: np.ndarray, ranks: int) -> list[list[MicroBatch]]:
        """Each rank's k-th micro-batch is made from the same neighbours in cost, dealt back and forth."""
        rounds = _back_and_forth(len(order), ranks)
        per_rank = min(_up(max(1, -(-len(rounds) // self.size)), self.multiple), self._most(len(order), ranks))
        runs = [rounds[start:end] for start, end in pairwise(len(rounds) * n // per_rank for n in range(per_rank + 1))]
        return [[order[run[run[:, rank] < len(order), rank]] for run in runs] for rank in range(ranks)]

    def _by_tokens(self, table: np.ndarray, order: np.ndarray, budget: int, ranks: int) -> list[list[MicroBatch]]:
        """Few micro-batches, of nearly equal cost; on every rank the k-th one costs about as much."""
        padding = self.layout.sequence_multiple
        lengths = -(-(table["tokens"][order].astype(np.int64) - 1) // padding) * padding
        budget -= self.layout.row_multiple - padding  # the row's own padding
        if len(order) and lengths.max() > budget:
            self._too_long(int(table["tokens"].max()))
        costs = self.costs(table)[order]
        members = self._fitting(lengths, costs, budget, ranks)
        totals = [-costs[batch].sum() for batch in members]
        alike = np.lexsort((np.arange(len(members)), totals))
        return [
            [order[members[place]] for place in alike[_back_and_forth(len(members), ranks)[:, rank]]]
            for rank in range(ranks)
        ]

    def _fitting(self, lengths: np.ndarray, costs: np.ndarray, budget: int, ranks: int) -> list[np.ndarray]:
        """The micro-batches of all ranks: even in cost where that fits, even in tokens where only that does."""
        step, most = ranks * self.multiple, self._most(len(lengths), ranks) * ranks
        bins, sizes = min(_up(max(1, _least_bins(lengths, budget)), step), most), lengths.astype(np.float64)
        while True:
            for weights in (costs, sizes):
                if (found := _even_bins(weights, lengths, budget, bins, ranks)) is not None:
                    return found
            if bins == most:
                return _even_bins(sizes, lengths, int(lengths.sum()), most, ranks) or []
            bins += step * max(1, bins // (50 * step))  # one more on each rank; of very many 2 %, so that it ends soon
            bins = min(bins, most)

    def _too_long(self, tokens: int) -> NoReturn:
        raise ConfigError(
            f"a sequence of {tokens} tokens does not fit into a micro-batch: "
            f"batch.max_tokens_per_micro_batch = {self.tokens}",
            f"give at least {tokens + self.layout.row_multiple}, or bound the lengths",
        )

    def _most(self, completions: int, ranks: int) -> int:
        """Micro-batches that each rank can fill."""
        most = completions // ranks // self.multiple * self.multiple
        if not most:
            raise ConfigError(
                f"{completions} completions cannot fill {self.multiple} micro-batches on each of {ranks} data-parallel "
                "ranks",
                f"At least {ranks * self.multiple} are needed.",
            )
        return most


@dataclass(frozen=True)
class Dealing:
    """Who trains what of a rollout, step by step.

    Attributes:
        size: episodes of an optimizer step.
        ranks: data-parallel ranks.
        everything: whether all completions go through forward and backward: where experts are balanced by their load,
            and where an advantage is known only after a pass.
        contrasts: whether the loss tells good completions of a group from bad ones, and has no gradient elsewhere.
        without_advantage: whether a completion of advantage 0 has a gradient.
    """

    packing: Packing
    size: int
    ranks: int
    everything: bool = False
    contrasts: bool = False
    without_advantage: bool = False

    @property
    def least(self) -> int:
        """So many sequences can be dealt, and a multiple of it without a micro-batch that is larger than asked for."""
        return self.ranks * self.packing.multiple

    def deal(self, table: np.ndarray, known: np.ndarray | None = None) -> list[list[list[MicroBatch]]]:
        """For each optimizer step of a pass over the rollout, rows of ``table`` by rank and micro-batch.

        Args:
            known: bool [B], the completions that there are payloads of; None for all.
        """
        there = table["answers"] if known is None else table["answers"] & known
        step_of = episode_of(table) // self.size
        return [self._step(table, np.flatnonzero((step_of == step) & there)) for step in np.unique(step_of)]

    def _step(self, table: np.ndarray, share: np.ndarray) -> list[list[MicroBatch]]:
        rows = share[self._taught(table[share])]
        return [[rows[batch] for batch in mine] for mine in self.packing.deal(table[rows], self.ranks)]

    def _taught(self, share: np.ndarray) -> np.ndarray:
        """The rows of ``share`` that have a gradient, and some more where ranks could not get as many otherwise."""
        if self.everything:
            return np.arange(len(share))
        if self.contrasts:
            share = share.copy()
            share["advantage"], share["turn_advantage"] = _mixed(share), 0.0
        return with_gradient(share, self.least, self.without_advantage)


def _mixed(table: np.ndarray) -> np.ndarray:
    """Whether each completion counts, and its group has both such with an advantage above 0 and such without: [B]."""
    counts = table["token_weight"] != 0
    good = np.unique(table["position"][counts & (table["advantage"] > 0)])
    bad = np.unique(table["position"][counts & (table["advantage"] <= 0)])
    return counts & np.isin(table["position"], np.intersect1d(good, bad))


def with_advantage(table: np.ndarray) -> np.ndarray:
    """Whether some token of each completion may have an advantage: bool [B]."""
    return (table["advantage"] != 0.0) | (table["turn_advantage"] != 0.0)


def with_gradient(table: np.ndarray, multiple_of: int, without_advantage: bool = False) -> np.ndarray:
    """Row numbers of the completions that the objective has a gradient for: int64.

    Those whose weight is not 0 (they are not filtered out), and whose advantage is not 0 unless the objective teaches
    ``without_advantage``. Leaving the others out of forward and backward changes no update, because weights were fixed
    for all of them. Some are kept where needed to give a multiple of ``multiple_of``, and at least that many, so that
    every data-parallel rank has the same number of micro-batches; of a table with fewer rows than that, all are kept.
    """
    idle = table["token_weight"] == 0.0
    if not without_advantage:
        idle |= ~with_advantage(table)
    teaching = len(table) - int(idle.sum())
    return np.argsort(idle, kind="stable")[: _up(max(1, teaching), multiple_of)]


def packing_metrics(dealt: list[list[MicroBatch]], table: np.ndarray, packing: Packing) -> dict[str, float]:
    """How well the rows of one optimizer step are filled, over all ranks, and what ranks wait for each other.

    They wait for the costliest micro-batch of every round, as models with experts make them.
    """
    inputs, costs = table["tokens"].astype(np.int64) - 1, packing.costs(table)
    total = sum(sum(packing.layout.padded(inputs[batch].tolist())) for mine in dealt for batch in mine)
    held = sum(int(inputs[batch].sum()) for mine in dealt for batch in mine)
    rounds = np.array([[costs[batch].sum() for batch in mine] for mine in dealt])  # [ranks, micro-batches]
    return {
        "packing/micro_batches": float(rounds.shape[1]),
        "packing/tokens_per_micro_batch": held / rounds.size,
        "packing/padding_fraction": 1 - held / total,
        "packing/imbalance": float(rounds.max(axis=0).sum() / rounds.mean(axis=0).sum() - 1),
    }


def _falling(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Row numbers of ``table`` in falling order of ``values``, whatever the order of the rows is."""
    return np.lexsort((table["branch"], table["sample"], table["position"], -values))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _back_and_forth(items: int, ranks: int) -> np.ndarray:
    """Numbers of ``items`` dealt to the ranks in order, then in reverse order, and so on: int64 [rounds, ranks].

    In the last round, numbers from ``items`` on are nobody's.
    """
    rounds = np.arange(_up(items, ranks)).reshape(-1, ranks)
    rounds[1::2] = rounds[1::2, ::-1].copy()
    return rounds


def _least_bins(lengths: np.ndarray, budget: int) -> int:
    """A number of bins of ``budget`` that ``lengths`` need at least: for their sum, and because the i longest are each
    no shorter than the i-th, of which a bin holds so many only.
    """
    longest_first = -np.sort(-lengths)
    by_number = -(-np.arange(1, len(lengths) + 1) // (budget // np.maximum(longest_first, 1)))
    return max(-(-int(lengths.sum()) // budget), int(by_number.max(initial=0)))


def _even_bins(weights: np.ndarray, lengths: np.ndarray, budget: int, bins: int, ranks: int) -> list[np.ndarray] | None:
    """Numbers of the items in each bin, none of which is longer than ``budget``; None where this does not find room.

    Items are given in falling order of length, and are no fewer than ``bins``. The first of them open a bin each;
    every ``ranks`` bins are to weigh what the first of them begins with. An item goes where it fits into what is
    missing, to the bin that misses most, and else to the bin of least weight that has room (Graham's
    longest-processing-time rule, SIAM J. Appl. Math. 17, 1969, with a bound).
    """
    load, room = weights[:bins].copy(), budget - lengths[:bins]
    missing = np.repeat(load[::ranks], ranks) - load
    chosen = np.arange(len(weights))
    for item in range(bins, len(weights)):
        weight, length = weights[item], lengths[item]
        rating = np.where(missing >= weight, -missing, load)
        rating[room < length] = np.inf
        place = int(rating.argmin())
        if room[place] < length:
            return None
        load[place] += weight
        missing[place] -= weight
        room[place] -= length
        chosen[item] = place
    by_bin = np.argsort(chosen, kind="stable")
    return np.split(by_bin, np.cumsum(np.bincount(chosen, minlength=bins))[:-1])
