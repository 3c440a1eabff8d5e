"""One sampling phase: prompts to scored completions.

Payloads stay on the rank that sampled them; summaries go to every rank.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import sequences_of
from grpo_hpc.control import Control
from grpo_hpc.data.prompts import PromptSet
from grpo_hpc.data.rows import Row
from grpo_hpc.errors import RewardError, ServersLost
from grpo_hpc.rewards.columns import lacking
from grpo_hpc.rewards.registry import needed_columns
from grpo_hpc.rewards.score import first_failures, require_scores
from grpo_hpc.rollout.claims import Deal, deal
from grpo_hpc.rollout.engine import Completion, Engine, Request, complete, sampling, whole_distribution
from grpo_hpc.rollout.episodes import Ask, Episode, Player, single_turn
from grpo_hpc.rollout.playing import EventThread, Playing
from grpo_hpc.rollout.replica_loop import Decisions, Desk, ReplicaLoop
from grpo_hpc.rollout.sample import COUNTED, FAILURES, Key, Sample, in_order, keys_of, summaries, summary_type
from grpo_hpc.rollout.scoring import Scored, Scorer


@dataclass(frozen=True)
class Asked:
    """Rows to complete: those of ``prompts`` at the ``places``, by their position in the endless sample order."""

    prompts: PromptSet
    places: Mapping[int, int]

    def row(self, position: int) -> Row:
        return self.prompts.row(self.places[position])

    def tokens(self, position: int) -> np.ndarray:
        """The row's chat as token ids: int32 [T]."""
        return self.prompts.tokens(self.places[position])


@dataclass(frozen=True)
class Collected:
    """What was sampled: summaries of all of it on every rank, and the completions of this rank.

    Attributes:
        cut: whether somebody asked to stop, or servers were lost, before it was all that was asked for.
        lost: why, where servers were lost.
    """

    table: np.ndarray
    scored: dict[Key, Scored]
    cut: bool = False
    lost: ServersLost | None = None

    @property
    def samples(self) -> dict[Key, Sample]:
        return {key: scored.sample for key, scored in self.scored.items()}

    def only(self, chosen: np.ndarray) -> Collected:
        """Rows of the table that are ``chosen``, and their completions."""
        table = self.table[chosen]
        return Collected(table, {key: self.scored[key] for key in keys_of(table) if key in self.scored})

    def __or__(self, other: Collected) -> Collected:
        """Both, in the order of their keys; cut short where ``other`` is."""
        table = in_order(np.concatenate([part.table for part in (self, other) if len(part.table)] or [other.table]))
        return Collected(table, self.scored | other.scored, other.cut, other.lost)


def nothing_collected() -> Collected:
    return Collected(np.zeros(0, summary_type(0)), {})


@dataclass(frozen=True)
class Sampling:
    """A rollout whose sampling is over, on one rank; rewards may still be missing.

    Attributes:
        playing: on the first rank of a replica, what became of its episodes.
        lost: servers that were lost meanwhile.
    """

    playing: Playing[Episode, list[Scored]] | None
    lost: ServersLost | None


class Collector:
    """Samples and scores completions. Every method is collective.

    Work is spread over all replicas of the engine, so no rank of a model-parallel group is idle. The first rank of a
    replica holds what it has sampled, decodes it and scores it.

    Args:
        scorer: scores episodes; None on all ranks of a replica but the first.
        player: plays them.
        stop: whether somebody has asked this rank to stop.
    """

    def __init__(
        self,
        cfg: RunConfig,
        engine: Engine,
        player: Player,
        scorer: Scorer | None,
        control: Control,
        stop: Callable[[], bool],
    ) -> None:
        self._seed, self._rollout = cfg.seed, cfg.rollout
        self._engine, self._control, self._stop = engine, control, stop
        self._player, self._scorer = player, scorer
        self._columns, self._places = cfg.rewards.columns, sequences_of(cfg)
        self._needed = needed_columns(cfg.rewards.called, cfg.rewards.reward_params)
        size = cfg.rollout.ranks_of_engine
        self._replica, part = divmod(control.rank, size)
        self.replicas = control.size // size
        self._loop = ReplicaLoop(engine, self._shared(size))
        assert (part == 0) == (scorer is not None), "the first rank of a replica scores"
        self._events = EventThread() if scorer else None
        self._number = 0  # of the rollout in this process

    def collect(self, asked: Asked, samples: int, known: Collection[Key] = (), *, greedy: bool = False) -> Sampling:
        """Sample ``samples`` completions of each row, without those that are ``known``; they are scored meanwhile."""
        wanted = [Key(position, number) for position in asked.places for number in range(samples)]
        wanted = [key for key in wanted if key not in known]
        lengths = [len(asked.tokens(key.position)) for key in wanted]
        dealt = deal(wanted, lengths, self.replicas, self._places, self._rollout.max_completion_length)
        self._number += 1
        playing = self._begin(dealt, asked, greedy)
        try:
            self._loop.run(playing.desk if playing else None)
        except ServersLost as error:
            if playing:
                playing.lose()
            return Sampling(playing, error)
        return Sampling(playing, None)

    def score(self, sampling: Sampling, asked: Asked) -> Collected:
        """Wait for the rewards, and let every rank know how all completions did.

        Raises:
            RewardError: a reward function failed, or nothing got a score.
        """
        scored = list[Scored]()
        if sampling.playing and self._events:
            scored = [one for episode in sampling.playing.result(self._events) for one in episode]
        self._say_failures(scored)
        cut = bool(sampling.playing and sampling.playing.cut)
        told = self._control.gather((cut, sampling.lost), "the slowest rollout")
        table = in_order(self._control.gather_rows(self._summaries(scored), "rewards of the other ranks"))
        lost = next((error for _, error in told if error), None)
        found = Collected(table, {s.sample.key: s for s in scored}, any(cut for cut, _ in told) or bool(lost), lost)
        if not found.cut and len(table):
            self._require_scores(found, asked)
        return found

    def probe(self, asked: Asked, tokens: int) -> Collected:
        """A short completion of every row from every replica, not scored; they are no part of the run.

        Raises:
            ServersLost: of some rank; raised on all of them.
        """
        options = whole_distribution(self._rollout, tokens)
        keys = [Key(position, self._replica) for position in asked.places]
        requests = [Request(asked.tokens(key.position), self._request_seed(key), options) for key in keys]
        completions, lost = list[Completion](), None
        try:
            completions = complete(self._engine, requests)
            self._engine.forget()  # the run samples as if nothing had been asked before
        except ServersLost as error:
            lost = error
        for told in self._control.gather(lost, "the first answers of the engines"):
            if told is not None:
                raise told
        made = zip(keys, requests, completions, strict=True)
        sampled = [single_turn(key, request.prompt_tokens, completion) for key, request, completion in made]
        scored = [Scored(sample, "") for sample in sampled] if self._scorer else []
        table = in_order(self._control.gather_rows(self._summaries(scored), "the first answers of the engines"))
        return Collected(table, {s.sample.key: s for s in scored})

    def close(self) -> None:
        """End the thread of the episodes, their processes, and those that call reward functions."""
        if self._events and self._scorer:
            self._events.start(self._player.close()).result()
            self._events.close()
            self._scorer.close()

    def _begin(self, dealt: Deal, asked: Asked, greedy: bool) -> Playing[Episode, list[Scored]] | None:
        """Set this replica's episodes going; nothing on all of its ranks but the first."""
        if self._events is None or self._scorer is None:
            return None
        desk, scorer, options = Desk(self._events.loop), self._scorer, sampling(self._rollout, greedy)
        if ends := self._player.stop_token_ids:
            options |= {"stop_token_ids": sorted({*self._rollout.stop_token_ids, *ends})}

        async def play(key: Key) -> Episode:
            ask = self._asking(key, desk, options)
            return await self._player.play(key, asked.row(key.position), asked.tokens(key.position), ask)

        async def score(episode: Episode) -> list[Scored]:
            return await scorer.score(episode, asked.row(episode.samples[0].key.position))

        keys = dealt.claimed(self._replica, partial(self._control.claim, f"rollout {self._number}"))
        playing = Playing(desk, keys, self._places, play, score, self._stop)
        playing.begin(self._events)
        return playing

    def _asking(self, key: Key, desk: Desk, options: Mapping[str, Any]) -> Ask:
        """How the episode ``key`` asks the policy."""

        async def ask(tokens: np.ndarray, turn: int, limit: int, stop: Sequence[str] = ()) -> Completion:
            told: dict[str, Any] = {"max_tokens": limit}
            told |= {"stop": [*options.get("stop", ()), *stop], "detokenize": True} if stop else {}
            return await desk.sample(Request(tokens, self._request_seed(key, turn), {**options, **told}))

        return ask

    def _shared(self, size: int) -> Callable[[Decisions | None], Decisions] | None:
        """How the first rank of this replica tells the others what it decides; None where there are none."""
        if size == 1:
            return None
        members = [list(range(first, first + size)) for first in range(0, self._control.size, size)]
        group = self._control.subgroup(members, self._replica)
        return self._control.shared_by(group, members[self._replica][0])

    def _say_failures(self, scored: Sequence[Scored]) -> None:
        for sentence in first_failures([s.failures for s in scored]).values():
            print(sentence, file=sys.stderr, flush=True)

    def _summaries(self, scored: Sequence[Scored]) -> np.ndarray:
        table = summaries([s.sample for s in scored], self._control.rank, len(self._columns))
        for row, s in zip(table, scored, strict=True):
            row["reward"], row["failed"] = s.reward, FAILURES.index(s.failure.partition(":")[0])
            row["environment_s"], row["policy_s"] = s.environment_s, s.policy_s
            for name in COUNTED:
                row[name] = s.counts.get(name, 0)
            row["rewards"] = [np.nan if (value := s.rewards.get(name)) is None else value for name in self._columns]
            kinds = [s.failures.get(name, "").partition(":")[0] for name in self._columns]
            row["failures"] = [FAILURES.index(kind) for kind in kinds]
        return table

    def _require_scores(self, found: Collected, asked: Asked) -> None:
        """A rollout that nothing can be learnt from ends the run, on every rank and with the reason."""
        table = found.table[found.table["answers"]]
        if not len(table):
            broken_off = [s.failure for s in found.scored.values() if s.failure]
            said = [text for part in self._control.gather(broken_off, "why environments failed") for text in part]
            if said:
                text = f"the environment failed in {len(said)} of {len(found.table)} episodes, and none is left"
                raise RewardError(f"{text}; {said[0]}", "What it printed is in the run directory: environments/.")
            raise RewardError(f"the engine gave up all {len(found.table)} completions", "Its log says why.")
        broken = (table["failures"] == FAILURES.index("error")).all(0) if len(table) > 1 else np.zeros(0, bool)
        if not broken.any() and not np.isnan(table["reward"]).all():
            return
        answered = [s for s in found.scored.values() if s.sample.answers]
        mine = [(s.failures, lacking(self._needed, asked.row(s.sample.key.position).columns)) for s in answered]
        everywhere = [one for part in self._control.gather(mine, "why rewards failed") for one in part]
        failures, without = zip(*everywhere, strict=True)
        require_scores(self._columns, table["reward"].tolist(), failures, without)
        if self._control.rank == 0 and np.isnan(table["reward"]).all():
            text = (
                f"none of {len(table)} completions has a score: all their rows have a null where rewards need a value"
            )
            print(text, file=sys.stderr, flush=True)

    def _request_seed(self, key: Key, turn: int = 0) -> int:
        """Depends on the run's seed and the turn's place alone: equal after a resume, whatever the layout."""
        place = f"{self._seed}/{key.position}/{key.sample}" + (f"/{turn}" if turn else "")
        return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=4).digest(), "big") >> 1
