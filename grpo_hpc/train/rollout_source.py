"""Rollouts: prompts to scored completions, with dynamic sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch.distributed as dist

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.data.prompts import PromptSet
from grpo_hpc.data.rows import Row
from grpo_hpc.data.sampler import PromptSampler
from grpo_hpc.rewards.score import require_scores
from grpo_hpc.rollout.collect import Collector, Prompt
from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train.checkpoints import TrainerState
from grpo_hpc.train.credit import informative
from grpo_hpc.train.watch import PhaseClock

Group = list[Trajectory]


@dataclass(frozen=True)
class Rollout:
    """What one sampling phase gave.

    Attributes:
        used: the completions to train on: ``generation_batch_size`` of them, in sampling order.
        sampled: everything that was sampled for it, in sampling order; what was carried over from before is not in it.
        surplus: carried over to the next rollout.
        position: prompts taken from the endless sample order so far.
        rounds: how often prompts were sampled.
        dropped, filled: groups without different rewards that are not in ``used``, and that are.
    """

    used: list[Trajectory]
    sampled: list[Trajectory]
    surplus: list[Trajectory]
    position: int
    rounds: int = 1
    dropped: int = 0
    filled: int = 0


class RolloutSource:
    """Samples and scores. Every method is collective over all ranks and gives every rank the same."""

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

    def next(self, state: TrainerState) -> Rollout:
        """The rollout that follows ``state``, which stays as it is."""
        wanted = self._schedule.prompts_per_rollout
        if not self._cfg.algorithm.dynamic_sample:
            sampled = self._round(state.position)
            return Rollout(sampled, sampled, [], state.position + wanted)
        return self._dynamic(state)

    def _dynamic(self, state: TrainerState) -> Rollout:
        """DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): on until enough groups have different rewards.

        Groups beyond what is wanted are kept for the next rollout. When the rounds are used up, groups without
        different rewards fill the batch: they have no gradient, and its size stays what it is.
        """
        wanted, groups, idle = self._schedule.prompts_per_rollout, _groups(state.surplus), list[Group]()
        position, sampled, rounds = state.position, list[Trajectory](), 0
        while len(groups) < wanted and rounds <= self._cfg.algorithm.max_resample_times:
            fresh = self._round(position)
            sampled += fresh
            for group, teaching in zip(_groups(fresh), _per_group(fresh, informative(self._cfg, fresh)), strict=True):
                (groups if teaching else idle).append(group)
            position += wanted
            rounds += 1
        used, surplus = groups[:wanted], groups[wanted:]
        missing = wanted - len(used)
        used = sorted(used + idle[:missing], key=lambda group: group[0].key)
        return Rollout(
            used=[t for group in used for t in group],
            sampled=sampled,
            surplus=[t for group in surplus for t in group],
            position=position,
            rounds=rounds,
            dropped=len(idle) - missing,
            filled=missing,
        )

    def _round(self, position: int) -> list[Trajectory]:
        return self.sample(self._prompts_from(position), self._schedule.num_generations, "rollout", greedy=False)

    def rows_of(self, trajectories: Sequence[Trajectory]) -> dict[int, Row]:
        """The dataset row that each completion answers, by position."""
        wanted = sorted({t.position for t in trajectories})
        found: dict[int, Row] = {}
        for position in wanted:
            if position not in found:
                found |= {prompt.position: prompt.row for prompt in self._prompts_from(position)}
        return {position: found[position] for position in wanted}

    def _prompts_from(self, position: int) -> list[Prompt]:
        """The prompts of one round that begins at ``position``."""
        # the order of rows depends on how many are drawn together, so that number is always the same
        indices = self._sampler.indices(position, self._schedule.prompts_per_rollout)
        return [Prompt.of(position + n, self._prompts, index) for n, index in enumerate(indices)]

    def sample(self, prompts: Sequence[Prompt], samples: int, phase: str, *, greedy: bool) -> list[Trajectory]:
        """``samples`` scored completions of each prompt, in the order of position and sample."""
        with self._clock.phase(phase):
            mine = self._collector.sample(prompts, samples, greedy=greedy)
            dist.barrier()  # so that waiting for the slowest replica counts as rollout
        with self._clock.phase("reward"):
            self._collector.score(mine, {prompt.position: prompt.row for prompt in prompts})
            everything = self._collector.gather(mine)
            require_scores(everything[0].rewards, [t.reward for t in everything], [t.failures for t in everything])
            return everything


def _groups(trajectories: Sequence[Trajectory]) -> list[Group]:
    """Completions of each position, in order."""
    return [list(group) for _, group in groupby(trajectories, key=lambda t: t.position)]


def _per_group(trajectories: Sequence[Trajectory], values: Sequence[bool]) -> list[bool]:
    """One of its completions' equal values for each group."""
    by_position = {t.position: value for t, value in zip(trajectories, values, strict=True)}
    return list(by_position.values())
