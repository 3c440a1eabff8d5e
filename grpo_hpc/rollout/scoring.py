"""What a completion is worth: its text, and what the reward functions say of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo_hpc.config import RunConfig
from grpo_hpc.config.sections import Rewards
from grpo_hpc.data.rows import Row
from grpo_hpc.rewards.registry import needed_columns
from grpo_hpc.rewards.runner import RewardRunner
from grpo_hpc.rewards.score import Answer, Score, score
from grpo_hpc.rollout.environments.protocol import Message
from grpo_hpc.rollout.episodes import Episode
from grpo_hpc.rollout.sample import Sample


class Decoder(Protocol):
    """What scoring needs of :class:`grpo_hpc.data.tokenizer.Tokenizer`."""

    def decode(self, tokens: list[int]) -> str: ...
    def opening(self, row: Row) -> str: ...


@dataclass(frozen=True)
class Scored:
    """A completion on the rank that scored it.

    Attributes:
        text: what was sampled, without special tokens; of several turns the last.
        rewards: by reward; None where it gave no score.
        failures: by reward that failed on it, ``error``, ``timeout`` or ``killed``, a colon, and why.
        reward: the weighted total; NaN where none gave a score.
        messages, turns: the chat before and after the policy first spoke, where it is more than the row's with one
            answer behind it.
        failure: why its environment could not go on, in the same form; empty where it could.
        counts: what happened in its episode, by name.
        environment_s, policy_s: seconds in which its episode waited for the environment, and for the policy.
    """

    sample: Sample
    text: str
    rewards: dict[str, float | None] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reward: float = float("nan")
    messages: list[Message] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    failure: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    environment_s: float = 0.0
    policy_s: float = 0.0


class Scorer:
    """Scores episodes, many at a time."""

    def __init__(self, rewards: Rewards, tokenizer: Decoder, runner: RewardRunner) -> None:
        self._rewards, self._tokenizer, self._runner = rewards, tokenizer, runner
        needed = needed_columns(rewards.called, rewards.reward_params).values()
        self._columns: dict[str, Any] = dict.fromkeys(column for columns in needed for column in columns)
        self._opening: tuple[str, str] = ("", "")  # of the prompt that was asked for last

    async def score(self, episode: Episode, row: Row) -> list[Scored]:
        """Each sequence of ``episode`` with text and rewards, which are those of all of it.

        Raises:
            RewardError: a function failed whose failures end the run.
        """
        r, sample = self._rewards, episode.samples[-1]
        text = episode.text or ""
        if episode.text is None and sample.answers:
            text = self._tokenizer.decode(sample.response.tolist())
        found = Score(dict.fromkeys(r.columns), float("nan"), {})
        if episode.failure and episode.reward is not None:  # it is worth that
            found = Score(dict.fromkeys(r.columns, episode.reward), episode.reward, {})
        elif sample.answers:
            found = await self._said(episode, row, text)
        told = episode.messages, episode.turns, episode.failure, episode.counts
        seconds = episode.environment_s, episode.policy_s
        return [Scored(s, text, found.rewards, found.failures, found.total, *told, *seconds) for s in episode.samples]

    async def _said(self, episode: Episode, row: Row, text: str) -> Score:
        """What reward functions and environment say."""
        r, tokens = self._rewards, [token for sample in episode.samples for token in sample.response.tolist()]
        opening = episode.opening if episode.turns else self._opening_of(row)
        answer = Answer(
            completion=text,
            prompt=row.messages,
            columns=self._columns | row.columns,
            finish_reason=episode.samples[-1].reason,
            completion_ids=tokens,
            assistant_turn=opening + text,
            messages=[*episode.messages, *episode.turns] or [*row.messages, {"role": "assistant", "content": text}],
        )
        given = dict.fromkeys(r.of_environment, episode.reward)
        return await asyncio.wrap_future(
            score(self._runner, r.columns, r.reward_weights, r.reward_failure, answer, given)
        )

    def close(self) -> None:
        """End the processes that call reward functions."""
        self._runner.close()

    def _opening_of(self, row: Row) -> str:
        """What the template begins an answer with; completions of one prompt end near each other."""
        if self._opening[0] != row.prompt_id:
            self._opening = row.prompt_id, self._tokenizer.opening(row)
        return self._opening[1]


def start_rewards(cfg: RunConfig) -> RewardRunner:
    """Processes for the reward functions; made before any model, so that what is wrong with them costs no time.

    Raises:
        ConfigError: they cannot be loaded.
        EnvironmentProblem: one of them cannot work here.
    """
    r = cfg.rewards
    runner = RewardRunner(
        r.called,
        r.reward_params,
        {"max_completion_length": cfg.rollout.max_completion_length, "reward_timeout": r.reward_timeout},
        workers=r.reward_workers * cfg.rollout.ranks_of_engine,  # one rank of a replica scores for all of them
        concurrency=r.reward_concurrency,
        timeout=r.reward_timeout,
        retries=r.reward_retries,
    )
    runner.start()
    return runner
