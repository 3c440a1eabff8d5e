"""Rollouts: prompts to scored completions, with dynamic sampling."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from grpo_hpc.algo.advantages import zero_variance_fraction
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.data.prompts import PromptSet
from grpo_hpc.data.rows import Row
from grpo_hpc.data.sampler import PromptSampler
from grpo_hpc.rollout.collect import Asked, Collected, Collector, nothing_collected
from grpo_hpc.rollout.sample import Key, episodes, keys_of
from grpo_hpc.rollout.scoring import Scored
from grpo_hpc.train.credit import informative
from grpo_hpc.train.watch import PhaseClock


@dataclass(frozen=True)
class Rollout:
    """What one sampling phase gave. Tables are the same on every rank.

    Attributes:
        used: the completions to train on: ``generation_batch_size`` of them, in sampling order.
        sampled: a row for each episode that was sampled for it, in sampling order; what was carried over from before is
            not in it.
        surplus: carried over to the next rollout.
        scored: of all these, the completions of this rank.
        position: prompts taken from the endless sample order so far.
        rounds: how often prompts were sampled.
        dropped, filled: groups without different rewards that are not in ``used``, and that are.
    """

    used: np.ndarray
    sampled: np.ndarray
    surplus: np.ndarray
    scored: dict[Key, Scored]
    position: int
    rounds: int = 1
    dropped: int = 0
    filled: int = 0

    @property
    def alike(self) -> float:
        """Share of the sampled groups whose rewards are all equal."""
        return zero_variance_fraction(
            torch.from_numpy(self.sampled["reward"].copy()), self.sampled["position"].tolist()
        )

    @property
    def carried(self) -> Collected:
        """What the next rollout begins with."""
        return Collected(self.surplus, {k: self.scored[k] for k in keys_of(self.surplus) if k in self.scored})


@dataclass
class _Groups:
    """Positions with their verdicts, as dynamic sampling finds them."""

    teaching: list[int] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)


class RolloutSource:
    """Samples and scores. Every method is collective over all ranks."""

    def __init__(
        self,
        cfg: RunConfig,
        schedule: BatchSchedule,
        collector: Collector,
        prompts: PromptSet,
        clock: PhaseClock,
    ) -> None:
        self._cfg, self._schedule, self._prompts, self._clock = cfg, schedule, prompts, clock
        self._collector = collector
        self._sampler = PromptSampler(len(prompts), cfg.seed, cfg.data.shuffle)

    def next(self, position: int, carried: Collected) -> Rollout | Collected:
        """The rollout that begins at ``position`` of the sample order; where it was cut short, what there is of it.

        Args:
            carried: what dynamic sampling has left over from the rollout before, and what was sampled of this one
                before it was cut short.
        """
        if self._cfg.algorithm.dynamic_sample:
            return self._dynamic(position, carried)
        found = self._round(position, carried)
        if found.cut:
            return found
        return Rollout(found.table, episodes(found.table), found.table[:0], found.scored, self._after(position))

    def _dynamic(self, position: int, carried: Collected) -> Rollout | Collected:
        """DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): on until enough groups have different rewards.

        Groups beyond what is wanted are kept for the next rollout. When the rounds are used up, groups without
        different rewards fill the batch: they have no gradient, and its size stays what it is.
        """
        surplus = carried.only(carried.table["position"] < position)
        wanted, rounds, sampled = self._schedule.prompts_per_rollout, 0, nothing_collected()
        groups = _Groups(_positions(surplus.table))
        while len(groups.teaching) < wanted and rounds <= self._cfg.algorithm.max_resample_times:
            fresh = self._round(position, carried)
            sampled |= fresh
            if fresh.cut:
                return replace(surplus | sampled, cut=True, lost=fresh.lost)
            teaching = set(_positions(fresh.table[informative(self._cfg, fresh.table)]))
            for group in _positions(fresh.table):
                (groups.teaching if group in teaching else groups.idle).append(group)
            position, rounds = self._after(position), rounds + 1
        missing = max(0, wanted - len(groups.teaching))
        used = sorted(groups.teaching[:wanted] + groups.idle[:missing])
        everything = surplus | sampled
        return Rollout(
            used=_of(everything.table, used),
            sampled=episodes(sampled.table),
            surplus=_of(everything.table, groups.teaching[wanted:]),
            scored=everything.scored,
            position=position,
            rounds=rounds,
            dropped=len(groups.idle) - missing,
            filled=missing,
        )

    def _round(self, position: int, carried: Collected) -> Collected:
        """Completions of the rows from ``position`` on; those that are ``carried`` are not sampled again."""
        places = carried.table["position"]
        known = carried.only((places >= position) & (places < self._after(position)))
        return self.sample(self.asked(position), self._schedule.num_generations, "rollout", known, greedy=False)

    def _after(self, position: int) -> int:
        return position + self._schedule.prompts_per_rollout

    def asked(self, position: int) -> Asked:
        """The rows of the round that begins at ``position``."""
        # the order of rows depends on how many are drawn together, so that number is always the same
        indices = self._sampler.indices(position, self._schedule.prompts_per_rollout)
        return Asked(self._prompts, {position + n: index for n, index in enumerate(indices)})

    def first_rows(self, count: int) -> Asked:
        """The first rows of the data set, and again from the start where it has fewer."""
        return Asked(self._prompts, {place: place % len(self._prompts) for place in range(count)})

    def row(self, position: int) -> Row:
        """The row that completions of ``position`` answer."""
        index = self._sampler.indices(position, self._schedule.prompts_per_rollout)[0]
        return self._prompts.row(index)

    def sample(
        self, asked: Asked, samples: int, phase: str, known: Collected | None = None, *, greedy: bool
    ) -> Collected:
        """``samples`` scored completions of each row, in the order of position and sample; ``known`` are among them."""
        known = known or nothing_collected()
        with self._clock.phase(phase):
            sampled = self._collector.collect(asked, samples, keys_of(known.table), greedy=greedy)
        with self._clock.phase("reward"):
            return known | self._collector.score(sampled, asked)


def _positions(table: np.ndarray) -> list[int]:
    """The groups of ``table``, in order."""
    return list(dict.fromkeys(table["position"].tolist()))


def _of(table: np.ndarray, positions: list[int]) -> np.ndarray:
    """All completions of the groups at ``positions``, group by group."""
    order = [np.flatnonzero(table["position"] == position) for position in positions]
    return table[np.concatenate(order)] if order else table[:0]
