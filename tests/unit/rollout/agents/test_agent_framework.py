"""An agent of a framework, written as its documentation says, against the endpoint."""

from __future__ import annotations

import asyncio

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from grpo_hpc.rollout.agents.agent import Outcome
from grpo_hpc.rollout.environments.protocol import EpisodeFailed
from grpo_hpc.rollout.sample import Key

KEY = Key(0, 0)


class Calculating:
    """Pydantic AI's agent with a tool, whose answer is compared with the row's."""

    def __init__(self, streaming: bool) -> None:
        self._streaming = streaming

    async def run(self, row, base_url, key):
        provider = OpenAIProvider(base_url=base_url, api_key=key)
        agent = Agent(OpenAIChatModel("policy", provider=provider), instructions="Use the tool.", retries=0)

        @agent.tool_plain
        def add(a: int, b: int) -> int:
            """The sum of two numbers."""
            return a + b

        try:
            if self._streaming:
                async with agent.run_stream("2+2?") as result:
                    said = await result.get_output()
            else:
                said = (await agent.run("2+2?")).output
        except ModelHTTPError as error:
            raise EpisodeFailed("error", str(error)) from None
        return Outcome(float(said == str(row.columns["answer"])))


@pytest.mark.parametrize("streaming", [False, True])
def test_turns_of_an_agent_are_one_sample(stage, streaming):
    """It keeps the chat in a form of its own: what it sends back has no thoughts, and JSON as it writes it."""
    stage.script = ['CALL[["add", {"a":2,   "b": 2}]]', "so|4"]
    outcome, conversation = stage.play(Calculating(streaming))
    assert outcome == Outcome(1.0)
    (sample,) = conversation.samples(KEY)
    assert stage.words.decode(sample.response) == 'CALL[["add", {"a":2,   "b": 2}]]</s>so|4</s>'
    assert "<tool>4</s><assistant>" in stage.words.decode(sample.tokens)
    assert stage.said == []


def test_two_agents_in_one_episode_are_two_sequences(stage):
    class Two:
        async def run(self, row, base_url, key):
            return max(await asyncio.gather(*(Calculating(False).run(row, base_url, key) for _ in range(2))), key=str)

    stage.script = ["4", "4"]
    _, conversation = stage.play(Two())
    assert [stage.words.decode(sample.response) for sample in conversation.samples(KEY)] == ["4</s>", "4</s>"]


def test_an_agent_whose_context_is_full(stage):
    stage.script, stage.context = ['CALL[["add", {"a": 2, "b": 2}]]'], 94
    outcome, conversation = stage.play(Calculating(False))
    assert outcome == Outcome() and conversation.full == "length"
