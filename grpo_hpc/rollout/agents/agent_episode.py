"""One episode of an agent, from its start to what it says came of it."""

from __future__ import annotations

import asyncio
from typing import Any

from grpo_hpc.data.rows import Row
from grpo_hpc.rollout.agents.agent import Agent, Outcome
from grpo_hpc.rollout.agents.chat_endpoint import ChatEndpoint
from grpo_hpc.rollout.agents.conversation import Conversation
from grpo_hpc.rollout.environments.protocol import EpisodeFailed


async def play(endpoint: ChatEndpoint, agent: Agent, row: Row, conversation: Conversation, silence_s: float) -> Outcome:
    """Let ``agent`` work on ``row``. What it asks the policy becomes ``conversation``, and nothing afterwards does.

    An agent that fails because the endpoint refused it another token or turn has failed at nothing: its episode ends
    there, without a reward of its own.

    Args:
        silence_s: seconds that it may take to its first request, between an answer and the next request, and from the
            last answer to its end.

    Raises:
        EpisodeFailed: the agent raised an error, died, was silent for too long, or asked nothing.
        Exception: what kept the policy from answering.
    """
    key = endpoint.admit(conversation)
    running = asyncio.create_task(agent.run(row, endpoint.base_url, key))
    try:
        outcome = await _ended(running, conversation, silence_s)
    except EpisodeFailed:
        if not conversation.full:
            raise
        outcome = Outcome()
    finally:
        endpoint.dismiss(key)
        running.cancel()
        await asyncio.wait([running])
    if not conversation.transcripts:
        raise EpisodeFailed("error", "the agent asked the policy nothing")
    return outcome


async def _ended(running: asyncio.Task[Outcome], conversation: Conversation, silence_s: float) -> Outcome:
    while not (running.done() or conversation.failure.done()):
        left = silence_s - conversation.quiet()
        if left <= 0:
            raise EpisodeFailed("timeout", f"the agent asked nothing for {silence_s:g} s, and did not end")
        either: list[asyncio.Future[Any]] = [running, conversation.failure]
        await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    if conversation.failure.done():
        raise conversation.failure.result()
    return running.result()
