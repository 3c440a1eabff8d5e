"""Episodes in which an agent drives the policy through an endpoint."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grpo_hpc.config.sections import Rollout
from grpo_hpc.data.rows import Row
from grpo_hpc.rollout.agents.agent import Outcome
from grpo_hpc.rollout.agents.agent_episode import play
from grpo_hpc.rollout.agents.chat_endpoint import ChatEndpoint
from grpo_hpc.rollout.agents.conversation import Conversation, Sampling
from grpo_hpc.rollout.agents.process_agent import ProcessAgent
from grpo_hpc.rollout.chat.rendering import Renderer
from grpo_hpc.rollout.chat.transcript import Transcript
from grpo_hpc.rollout.engine import Completion, sampling
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool
from grpo_hpc.rollout.environments.protocol import EpisodeFailed
from grpo_hpc.rollout.episodes import Ask, Episode, Limits, left_of, name_of
from grpo_hpc.rollout.sample import Key


class AgentEpisodes:
    """Plays episodes of agents, each in a process of its own.

    Args:
        context: tokens that the engine can read and sample in one sequence.
    """

    def __init__(self, r: Rollout, pool: EnvironmentPool, renderer: Renderer, context: int) -> None:
        self._rollout, self._pool, self._renderer, self._limits = r, pool, renderer, Limits.of(r, context)
        self._endpoint = ChatEndpoint(renderer.text_of, sampling(r, greedy=False), _say)
        self._starting = asyncio.Lock()

    @property
    def stop_token_ids(self) -> list[int]:
        return self._renderer.stop_token_ids

    async def play(self, key: Key, row: Row, prompt: np.ndarray, ask: Ask) -> Episode:
        async with self._starting:
            if not self._endpoint.base_url:
                await self._endpoint.start()
        asked = _Timed(ask)
        told = Sampling(self._transcript, row.template, self._limits.room, asked, self._limits.turns)
        conversation, began = Conversation(told), asyncio.get_running_loop().time()
        agent, outcome, failure = ProcessAgent(self._pool.process(name_of(key, row))), Outcome(), ""
        try:
            outcome = await play(self._endpoint, agent, row, conversation, self._rollout.environment_timeout)
        except EpisodeFailed as error:
            failure = str(error)
        seconds = asyncio.get_running_loop().time() - began
        last = conversation.transcripts[-1] if conversation.transcripts else None
        return Episode(
            left_of(conversation.samples(key), key, prompt, conversation.full),
            last.text if last else "",
            last.messages[: last.opened] if last else [],
            last.messages[last.opened :] if last else [],
            last.opening if last else "",
            outcome.reward,
            counts=dict(outcome.counts),
            environment_s=max(0.0, seconds - asked.seconds),
            policy_s=asked.seconds,
        ).having_failed(failure, self._rollout.environment_failure)

    async def close(self) -> None:
        if self._endpoint.base_url:
            await self._endpoint.close()
        self._pool.close()

    def _transcript(self) -> Transcript:
        return Transcript(self._renderer)


@dataclass
class _Timed:
    """Asks, and adds up how long that took."""

    ask: Ask
    seconds: float = 0.0

    async def __call__(self, tokens: np.ndarray, turn: int, limit: int, stop: Sequence[str]) -> Completion:
        began = asyncio.get_running_loop().time()
        try:
            return await self.ask(tokens, turn, limit, stop)
        finally:
            self.seconds += asyncio.get_running_loop().time() - began


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
