"""One rollout: prompts to scored trajectories, spread over all ranks and gathered on every one of them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from grpo_hpc.config import RunConfig
from grpo_hpc.data.prompts import PromptSet
from grpo_hpc.data.rows import Row
from grpo_hpc.data.tokenizer import Tokenizer
from grpo_hpc.errors import ServersLost
from grpo_hpc.rewards.runner import RewardPools
from grpo_hpc.rewards.score import RewardBatch, score
from grpo_hpc.rollout.engine import Completion, Engine, Request
from grpo_hpc.rollout.trajectory import Trajectory


@dataclass(frozen=True)
class Prompt:
    """A dataset row made ready for the engine; ``position`` is its place in the endless sample order."""

    position: int
    row: Row
    tokens: list[int]

    @classmethod
    def of(cls, position: int, prompts: PromptSet, number: int) -> Prompt:
        """Prompt ``number`` of a data set."""
        return cls(position, prompts.row(number), prompts.tokens(number).tolist())


class Collector:
    """Samples and scores completions. Every method is collective and gives every rank the same result.

    Work is split over all replicas of the engine, so no rank of a model-parallel group is idle.
    """

    def __init__(self, cfg: RunConfig, engine: Engine, tokenizer: Tokenizer, pool: RewardPools) -> None:
        self._seed = cfg.seed
        self._engine, self._tokenizer = engine, tokenizer
        self._rewards, self._pool = cfg.rewards, pool
        self._columns = cfg.rewards.columns
        self._replica_size = cfg.rollout.ranks_of_engine

    def sample(self, prompts: Sequence[Prompt], samples: int, *, greedy: bool = False) -> list[Trajectory]:
        """``samples`` completions of each prompt, in the order of position and sample; not scored yet."""
        wanted = [(prompt, sample) for prompt in prompts for sample in range(samples)]
        replicas = dist.get_world_size() // self._replica_size
        mine = _slice(wanted, dist.get_rank() // self._replica_size, replicas)
        requests = [Request(prompt.tokens, self._request_seed(prompt.position, sample)) for prompt, sample in mine]
        completions = _agreed(lambda: self._engine.generate(requests, greedy=greedy) if requests else [])
        return [
            self._trajectory(prompt, number, completion)
            for (prompt, number), completion in zip(mine, completions, strict=True)
        ]

    def probe(self, prompts: Sequence[Prompt], tokens: int) -> list[Trajectory]:
        """A short completion of every prompt from every replica, on every rank; they are no part of the run."""
        replica = dist.get_rank() // self._replica_size
        requests = [Request(p.tokens, self._request_seed(p.position, replica)) for p in prompts]
        completions = _agreed(lambda: self._engine.probe(requests, tokens))
        pairs = zip(prompts, completions, strict=True)
        return self.gather([self._trajectory(prompt, replica, completion) for prompt, completion in pairs])

    def score(self, trajectories: list[Trajectory], rows: dict[int, Row]) -> None:
        """Fill in the reward columns and the weighted reward of this rank's trajectories.

        Args:
            rows: dataset row by position.

        Raises:
            RewardError: a reward function failed.
        """
        if not trajectories:
            return
        chosen = [rows[t.position] for t in trajectories]
        table = score(
            self._pool,
            self._columns,
            self._rewards.reward_weights,
            self._rewards.reward_failure,
            RewardBatch(
                completions=[t.text for t in trajectories],
                prompts=[row.messages for row in chosen],
                columns=_columns(chosen),
                finish_reasons=[t.finish_reason for t in trajectories],
                completion_ids=[t.response_tokens for t in trajectories],
            ),
        )
        for number, trajectory in enumerate(trajectories):
            trajectory.rewards = {name: column[number] for name, column in table.columns.items()}
            trajectory.reward = table.totals[number]
            trajectory.failures = table.failures[number]
        for sentence in table.first.values():
            print(sentence, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the processes that call reward functions."""
        self._pool.close()

    def gather(self, mine: list[Trajectory]) -> list[Trajectory]:
        """Everybody's trajectories on every rank, ordered by position and sample."""
        first_of_replica = dist.get_rank() % self._replica_size == 0
        gathered = gather_lists(mine if first_of_replica else [])
        return sorted(gathered, key=lambda t: (t.position, t.sample))

    def _trajectory(self, prompt: Prompt, sample: int, completion: Completion) -> Trajectory:
        return Trajectory(
            prompt_id=prompt.row.prompt_id,
            position=prompt.position,
            sample=sample,
            prompt_tokens=prompt.tokens,
            response_tokens=completion.tokens,
            rollout_logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            weight_version=self._engine.version or 0,
            text=self._tokenizer.decode(completion.tokens),
            routing=completion.routing,
        )

    def _request_seed(self, position: int, sample: int) -> int:
        """Depends on the run's seed and the completion's place alone: equal after a resume, whatever the layout."""
        digest = hashlib.blake2b(f"{self._seed}/{position}/{sample}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") >> 1


def start_rewards(cfg: RunConfig) -> RewardPools:
    """Processes for the reward functions; made before any model, so that what is wrong with them costs no time.

    Raises:
        ConfigError: they cannot be loaded.
        EnvironmentProblem: one of them cannot work here.
    """
    r = cfg.rewards
    pool = RewardPools(
        r.reward_funcs,
        r.reward_params,
        {"max_completion_length": cfg.rollout.max_completion_length, "reward_timeout": r.reward_timeout},
        workers=r.reward_workers,
        concurrency=r.reward_concurrency,
        timeout=r.reward_timeout,
        retries=r.reward_retries,
    )
    pool.start()
    return pool


def gather_lists(mine: list[Any]) -> list[Any]:
    """The lists of all ranks joined in rank order, on every rank."""
    parts: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return [item for part in parts for item in part]


def _agreed(work: Callable[[], list[Completion]]) -> list[Completion]:
    """This rank's completions; where one rank has lost its server all of them have, so that they can save together."""
    found, lost = list[Completion](), None
    try:
        found = work()
    except ServersLost as error:
        lost = error
    if everywhere := [error for error in gather_lists([lost]) if error is not None]:
        raise everywhere[0]
    return found


def _slice(items: list[Any], part: int, parts: int) -> list[Any]:
    """The ``part``-th of ``parts`` contiguous shares, as even as they can be."""
    return items[len(items) * part // parts : len(items) * (part + 1) // parts]


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    names = {name for row in rows for name in row.columns}
    return {name: [row.columns.get(name) for row in rows] for name in sorted(names)}
