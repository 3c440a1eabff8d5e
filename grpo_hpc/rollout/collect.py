"""One sampling phase: prompts to scored completions.

Payloads stay on the rank that sampled them; summaries go to every rank.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from grpo_hpc.config import RunConfig
from grpo_hpc.control import Control
from grpo_hpc.data.prompts import PromptSet
from grpo_hpc.data.rows import Row
from grpo_hpc.data.tokenizer import Tokenizer
from grpo_hpc.errors import RewardError, ServersLost
from grpo_hpc.rewards.columns import lacking
from grpo_hpc.rewards.registry import needed_columns
from grpo_hpc.rewards.runner import RewardRunner
from grpo_hpc.rewards.score import Answer, Score, first_failures, require_scores, score
from grpo_hpc.rollout.engine import Completion, Engine, Request
from grpo_hpc.rollout.sample import FAILURES, Key, Sample, in_order, summaries, summary_type
from grpo_hpc.rollout.spread import spread


@dataclass(frozen=True)
class Asked:
    """Rows to complete: those of ``prompts`` at the ``places``, by their position in the endless sample order."""

    prompts: PromptSet
    places: Mapping[int, int]

    def row(self, position: int) -> Row:
        return self.prompts.row(self.places[position])


@dataclass(frozen=True)
class Scored:
    """A completion on the rank that scored it.

    Attributes:
        text: what was sampled, without special tokens.
        rewards: by reward function; None where it gave no score.
        failures: by reward function that failed on it, ``error``, ``timeout`` or ``killed``, a colon, and why.
        reward: the weighted total; NaN where no function gave a score.
    """

    sample: Sample
    text: str
    rewards: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reward: float = float("nan")


@dataclass(frozen=True)
class Collected:
    """What was sampled: summaries of all of it on every rank, and the completions of this rank."""

    table: np.ndarray
    scored: dict[Key, Scored]

    @property
    def samples(self) -> dict[Key, Sample]:
        return {key: scored.sample for key, scored in self.scored.items()}


def nothing_collected() -> Collected:
    return Collected(np.zeros(0, summary_type(0)), {})


class Collector:
    """Samples and scores completions. Every method is collective.

    Work is split over all replicas of the engine, so no rank of a model-parallel group is idle. The ranks of a replica
    get the same completions; each of them owns a part, which it alone decodes and scores.
    """

    def __init__(
        self, cfg: RunConfig, engine: Engine, tokenizer: Tokenizer, runner: RewardRunner, control: Control
    ) -> None:
        self._seed = cfg.seed
        self._engine, self._tokenizer, self._control = engine, tokenizer, control
        self._rewards, self._runner = cfg.rewards, runner
        self._columns, self._longest = cfg.rewards.columns, cfg.rollout.max_completion_length
        self._needed = needed_columns(cfg.rewards.reward_funcs, cfg.rewards.reward_params)
        self._size = cfg.rollout.ranks_of_engine
        self._replica, self._part = divmod(control.rank, self._size)
        self.replicas = control.size // self._size

    def collect(self, asked: Asked, samples: int, *, greedy: bool = False) -> list[Sample] | ServersLost:
        """This rank's part of ``samples`` completions of each row, or why there are none."""
        wanted = [Key(position, number) for position in asked.places for number in range(samples)]
        lengths = [len(asked.prompts.tokens(place)) for place in asked.places.values()]
        engine_of = spread(lengths, samples, self.replicas, self._longest)
        mine = [wanted[n] for n in np.flatnonzero(engine_of == self._replica)]
        requests = [Request(asked.prompts.tokens(asked.places[key.position]), self._request_seed(key)) for key in mine]
        try:
            completions = self._engine.generate(requests, greedy=greedy) if requests else []
        except ServersLost as error:
            return error
        return self._owned([self._sample(*made) for made in zip(mine, requests, completions, strict=True)])

    def score(self, sampled: list[Sample] | ServersLost, asked: Asked) -> Collected:
        """Call the reward functions on this rank's completions, and let every rank know how all of them did.

        Raises:
            RewardError: a reward function failed, or nothing got a score.
            ServersLost: of some rank; raised on all of them, so that they can save together.
        """
        scored = [] if isinstance(sampled, ServersLost) else self._scored(sampled, asked)
        self._raise_together(sampled if isinstance(sampled, ServersLost) else None, "the slowest rollout")
        table = in_order(self._control.gather_rows(self._summaries(scored), "rewards of the other ranks"))
        found = Collected(table, {s.sample.key: s for s in scored})
        self._require_scores(found, asked)
        return found

    def probe(self, asked: Asked, tokens: int) -> Collected:
        """A short completion of every row from every replica, not scored; they are no part of the run.

        Raises:
            ServersLost: of some rank; raised on all of them.
        """
        keys = [Key(position, self._replica) for position in asked.places]
        requests = [Request(asked.prompts.tokens(asked.places[key.position]), self._request_seed(key)) for key in keys]
        completions, lost = list[Completion](), None
        try:
            completions = self._engine.probe(requests, tokens)
        except ServersLost as error:
            lost = error
        self._raise_together(lost, "the first answers of the engines")
        owned = self._owned([self._sample(*made) for made in zip(keys, requests, completions, strict=True)])
        scored = [Scored(sample, "") for sample in owned]
        table = in_order(self._control.gather_rows(self._summaries(scored), "the first answers of the engines"))
        return Collected(table, {s.sample.key: s for s in scored})

    def close(self) -> None:
        """End the processes that call reward functions."""
        self._runner.close()

    def _raise_together(self, mine: ServersLost | None, what: str) -> None:
        """What some rank has lost is lost for all: they go on together or not at all."""
        for error in self._control.gather(mine, what):
            if error is not None:
                raise error

    def _owned(self, sampled: list[Sample]) -> list[Sample]:
        return sampled[self._part :: self._size]

    def _sample(self, key: Key, request: Request, completion: Completion) -> Sample:
        return Sample.single_turn(
            key,
            request.prompt_tokens,
            completion.tokens,
            completion.logprobs,
            self._engine.version or 0,
            completion.finish_reason,
            completion.routing,
        )

    def _scored(self, sampled: list[Sample], asked: Asked) -> list[Scored]:
        """``sampled`` with text and rewards; what the engine gave up has none."""
        answers = [sample for sample in sampled if sample.answers]
        given_up = [Scored(sample, "", dict.fromkeys(self._columns)) for sample in sampled if not sample.answers]
        if not answers:
            return given_up
        row_of = {position: asked.row(position) for position in {sample.key.position for sample in answers}}
        opening_of = {position: self._tokenizer.opening(row) for position, row in row_of.items()}
        texts = [self._tokenizer.decode(sample.response.tolist()) for sample in answers]
        futures = [
            self._score(sample, text, opening_of[sample.key.position], row_of[sample.key.position])
            for sample, text in zip(answers, texts, strict=True)
        ]
        scores = [future.result() for future in futures]
        for sentence in first_failures([each.failures for each in scores]).values():
            print(sentence, file=sys.stderr, flush=True)
        return given_up + [
            Scored(sample, text, each.rewards, each.failures, each.total)
            for sample, text, each in zip(answers, texts, scores, strict=True)
        ]

    def _score(self, sample: Sample, text: str, opening: str, row: Row) -> Future[Score]:
        answer = Answer(
            completion=text,
            prompt=row.messages,
            columns=dict.fromkeys(chain(*self._needed.values())) | row.columns,
            finish_reason=sample.reason,
            completion_ids=sample.response.tolist(),
            assistant_turn=opening + text,
        )
        r = self._rewards
        return score(self._runner, self._columns, r.reward_weights, r.reward_failure, answer)

    def _summaries(self, scored: Sequence[Scored]) -> np.ndarray:
        table = summaries([s.sample for s in scored], self._control.rank, len(self._columns))
        for row, s in zip(table, scored, strict=True):
            row["reward"] = s.reward
            row["rewards"] = [np.nan if (value := s.rewards.get(name)) is None else value for name in self._columns]
            kinds = [s.failures.get(name, "").partition(":")[0] for name in self._columns]
            row["failures"] = [FAILURES.index(kind) for kind in kinds]
        return table

    def _require_scores(self, found: Collected, asked: Asked) -> None:
        """A rollout that nothing can be learnt from ends the run, on every rank and with the reason."""
        table = found.table[found.table["answers"]]
        if not len(table):
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

    def _request_seed(self, key: Key) -> int:
        """Depends on the run's seed and the completion's place alone: equal after a resume, whatever the layout."""
        digest = hashlib.blake2b(f"{self._seed}/{key.position}/{key.sample}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") >> 1


def start_rewards(cfg: RunConfig) -> RewardRunner:
    """Processes for the reward functions; made before any model, so that what is wrong with them costs no time.

    Raises:
        ConfigError: they cannot be loaded.
        EnvironmentProblem: one of them cannot work here.
    """
    r = cfg.rewards
    runner = RewardRunner(
        r.reward_funcs,
        r.reward_params,
        {"max_completion_length": cfg.rollout.max_completion_length, "reward_timeout": r.reward_timeout},
        workers=r.reward_workers,
        concurrency=r.reward_concurrency,
        timeout=r.reward_timeout,
        retries=r.reward_retries,
    )
    runner.start()
    return runner
