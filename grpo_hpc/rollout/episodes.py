"""One episode, from its row to what it leaves: token sequences, messages, what its environment gave."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar

import numpy as np

from grpo_hpc.config.sections import Rollout
from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.chat.rendering import Renderer
from grpo_hpc.rollout.chat.transcript import Transcript
from grpo_hpc.rollout.engine import Completion
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool
from grpo_hpc.rollout.environments.protocol import Environment, EpisodeFailed, Message, Reply
from grpo_hpc.rollout.sample import GIVEN_UP, REASONS, Key, Sample

_Result = TypeVar("_Result")


class Ask(Protocol):
    """Asks the policy in one episode."""

    async def __call__(self, tokens: np.ndarray, turn: int, limit: int, stop: Sequence[str] = ()) -> Completion:
        """What it says.

        Args:
            tokens: int32 [T], what it goes on with.
            limit: tokens that it may sample.
            stop: texts that end it besides those of the run file.
        """


@dataclass(frozen=True)
class Episode:
    """What one episode left.

    Attributes:
        samples: its token sequences, at least one; several where a chat was edited.
        text: the policy's last turn without special tokens; None where nobody has decoded it.
        messages: the chat up to where the policy spoke; empty where it is the row's, with one answer behind it.
        turns: the rest of it: what the policy said, and heard in between.
        opening: what the chat template began the policy's last turn with, where there are ``turns``.
        reward: the sum of what the environment gave; None where it gave nothing.
        failure: why the environment could not go on: ``error``, ``timeout`` or ``killed``, a colon, and what happened.
        counts: what happened in it, by name.
        environment_s: seconds in which the environment was waited for.
        policy_s: seconds in which the policy was waited for.
    """

    samples: list[Sample]
    text: str | None = None
    messages: list[Message] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    opening: str = ""
    reward: float | None = None
    failure: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    environment_s: float = 0.0
    policy_s: float = 0.0

    def having_failed(self, failure: str, on_failure: Literal["drop", "zero"]) -> Episode:
        """The same where ``failure`` is empty; else without a vote, or worth 0."""
        if not failure:
            return self
        if on_failure == "zero" and self.samples[0].answers:
            return replace(self, reward=0.0, failure=failure)
        return replace(self, samples=[_ended(s, "error") for s in self.samples], reward=None, failure=failure)


class Player(Protocol):
    """Plays episodes, many at a time."""

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end a turn besides those of the run file."""

    async def play(self, key: Key, row: Row, prompt: np.ndarray, ask: Ask) -> Episode:
        """One episode, from first to last turn.

        Args:
            prompt: the row's chat as token ids: int32 [T].
        """

    async def close(self) -> None:
        """Give back what episodes need."""


class SingleTurns:
    """Episodes of one answer to one prompt.

    Args:
        limit: its longest length.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit

    @property
    def stop_token_ids(self) -> list[int]:
        return []

    async def play(self, key: Key, row: Row, prompt: np.ndarray, ask: Ask) -> Episode:
        return Episode([single_turn(key, prompt, await ask(prompt, 0, self._limit))])

    async def close(self) -> None:
        """There is nothing."""


class EnvironmentEpisodes:
    """Episodes in which an environment answers the policy.

    Args:
        context: tokens that the engine can read and sample in one sequence.
    """

    def __init__(self, r: Rollout, pool: EnvironmentPool, renderer: Renderer, context: int) -> None:
        self._rollout, self._pool, self._renderer, self._limits = r, pool, renderer, Limits.of(r, context)

    @property
    def stop_token_ids(self) -> list[int]:
        return self._renderer.stop_token_ids

    async def play(self, key: Key, row: Row, prompt: np.ndarray, ask: Ask) -> Episode:
        environment = self._pool.new(name_of(key, row))
        chat = Transcript(self._renderer)
        played = _Played(environment, chat, row, ask, self._limits)
        failure, end = "", ""
        try:
            end = await played.to_the_end()
        except EpisodeFailed as error:
            failure = str(error)
        except ConfigError as error:  # of the chat template, about what the environment says
            failure = f"error: {error.message}"
        finally:
            await environment.close()
        return Episode(
            left_of(with_turn_rewards(chat.samples(key), played.rewards), key, prompt, end),
            chat.text,
            chat.messages[: chat.opened],
            chat.messages[chat.opened :],
            chat.opening,
            played.reward,
            counts=played.counts,
            environment_s=played.environment_s,
            policy_s=played.policy_s,
        ).having_failed(failure, self._rollout.environment_failure)

    async def close(self) -> None:
        self._pool.close()


@dataclass(frozen=True)
class Limits:
    """What an episode may take.

    Attributes:
        turns: of the policy.
        tokens: that it may sample: in each turn, or in all together.
        together: which of the two.
        context: tokens that the engine can read and sample in one sequence.
    """

    turns: int
    tokens: int
    together: bool
    context: int

    @classmethod
    def of(cls, r: Rollout, context: int) -> Limits:
        """Those of a run file."""
        return cls(r.max_turns, r.max_completion_length, r.completion_length_limit_scope == "total", context)

    def room(self, length: int, sampled: int) -> int:
        """Tokens that the next turn may have.

        Args:
            length: of the sequence that it goes on with.
            sampled: tokens in the turns before it.
        """
        return min(self.tokens - (sampled if self.together else 0), self.context - length)


def single_turn(key: Key, prompt: np.ndarray, completion: Completion) -> Sample:
    """One answer to one prompt."""
    told = completion.tokens, completion.logprobs, completion.version, completion.finish_reason, completion.routing
    return Sample.single_turn(key, prompt, *told)


def name_of(key: Key, row: Row) -> str:
    """How logs name an episode."""
    return f"{row.prompt_id} {key.position}/{key.sample}"


def left_of(samples: list[Sample], key: Key, prompt: np.ndarray, end: str) -> list[Sample]:
    """What an episode leaves.

    Args:
        samples: what was sampled; of an episode in which the policy said nothing its ``prompt`` is left.
        end: why it ended, where that is not why its last turn did.
    """
    if not samples:
        return [Sample.single_turn(key, prompt, prompt[:0], np.zeros(0, np.float32), 0, "error")]
    return [*samples[:-1], _ended(samples[-1], end)] if end else samples


def with_turn_rewards(samples: list[Sample], rewards: Sequence[float | None]) -> list[Sample]:
    """``samples`` with what was given for each turn of the episode, in order; a turn without an answer has none."""
    if all(reward is None for reward in rewards):
        return samples
    told = np.array([np.nan if reward is None else reward for reward in rewards], np.float32)
    ends = np.cumsum([len(sample.turns) for sample in samples])
    told = np.concatenate([told, np.full(ends[-1] - len(told), np.nan, np.float32)])
    parts = np.split(told, ends[:-1])
    return [replace(sample, turn_rewards=part) for sample, part in zip(samples, parts, strict=True)]


class _Played:
    """An episode while it is played."""

    def __init__(self, environment: Environment, transcript: Transcript, row: Row, ask: Ask, limits: Limits) -> None:
        self._environment, self._transcript, self._row = environment, transcript, row
        self._ask, self._limits = ask, limits
        self.rewards: list[float | None] = []
        self.counts: dict[str, int] = {}
        self.environment_s = self.policy_s = 0.0

    @property
    def reward(self) -> float | None:
        """The sum of what the environment gave; None where it gave nothing."""
        given = [reward for reward in self.rewards if reward is not None]
        return sum(given) if given else None

    async def to_the_end(self) -> str:
        """Until the environment says that it is over, a turn was cut off, or there is a limit.

        Returns:
            why it ended, where that is not why the last turn did.
        """
        opening = await self._of_environment(self._environment.start(self._row))
        self._transcript.open(opening.messages, opening.tools, self._row.template)
        sampled = 0
        for number in range(self._limits.turns):
            length = len(self._transcript.tokens)
            room = self._limits.room(length, sampled)
            if room < 1 and not number:
                text = f"the chat has {length} tokens before the policy speaks; rollout.vllm_max_model_len allows for"
                raise EpisodeFailed("error", f"{text} {self._limits.context} and its turns")
            if room < 1:
                return "length"
            completion = await self._of_policy(number, room)
            sampled += len(completion.tokens)
            turn = self._transcript.said(completion)
            if turn.finish in GIVEN_UP:
                return ""
            reply = await self._of_environment(self._environment.reply(turn))
            self._note(reply)
            if reply.done or turn.finish != "stop":
                return ""
            self._transcript.heard(reply.messages)
        return "turns"

    def _note(self, reply: Reply) -> None:
        for name, count in reply.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self.rewards.append(reply.reward)

    async def _of_environment(self, answer: Awaitable[_Result]) -> _Result:
        began = time.monotonic()
        try:
            return await answer
        finally:
            self.environment_s += time.monotonic() - began

    async def _of_policy(self, number: int, room: int) -> Completion:
        began = time.monotonic()
        completion = await self._ask(self._transcript.tokens, number, room)
        self.policy_s += time.monotonic() - began
        return completion


def _ended(sample: Sample, reason: str) -> Sample:
    """``sample`` with another reason for its end."""
    turns = sample.turns.copy()
    turns[-1, 1] = REASONS.index(reason)
    return replace(sample, turns=turns)
