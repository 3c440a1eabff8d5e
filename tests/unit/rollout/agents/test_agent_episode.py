"""Agents of several kinds, and what becomes of their episodes when they fail."""

from __future__ import annotations

import asyncio
import sys

import openai
import pytest

from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.agents.agent import Outcome
from grpo_hpc.rollout.agents.program_agent import ProgramAgent
from grpo_hpc.rollout.environments.protocol import EpisodeFailed
from grpo_hpc.rollout.sample import Key

KEY = Key(0, 0)


class Asking:
    """Asks once, and then does what it was made for."""

    def __init__(self, then=lambda: Outcome(1.0), questions: int = 1) -> None:
        self._then, self._questions = then, questions

    async def run(self, row, base_url, key):
        chat = list(row.messages)
        async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30) as client:
            for _ in range(self._questions):
                try:
                    answer = await client.chat.completions.create(model="m", messages=chat)
                except openai.OpenAIError as error:  # as the process of an agent tells it
                    raise EpisodeFailed("error", str(error)) from None
                chat += [answer.choices[0].message, {"role": "user", "content": "and?"}]
        returned = self._then()
        return await returned if asyncio.iscoroutine(returned) else returned


def fails():
    raise EpisodeFailed("killed", "it is gone")


def test_an_episode(stage):
    stage.script = ["one", "two"]
    outcome, conversation = stage.play(Asking(questions=2))
    assert outcome == Outcome(1.0)
    (sample,) = conversation.samples(KEY)
    assert stage.words.decode(sample.response) == "one</s>two</s>"
    assert stage.endpoint._conversations == {}, "its key is good for nothing any more"


def test_an_agent_that_is_lost_costs_its_episode(stage):
    stage.script = ["one"]
    with pytest.raises(EpisodeFailed, match="it is gone"):
        stage.play(Asking(fails))
    stage.script = ["two"]
    assert stage.play(Asking())[0] == Outcome(1.0), "others go on"


def test_silence_ends_an_episode(stage):
    stage.script = ["one"]
    with pytest.raises(EpisodeFailed, match=r"nothing for 0\.3 s") as caught:
        stage.play(Asking(lambda: asyncio.sleep(60)), silence_s=0.3)
    assert caught.value.kind == "timeout"


def test_an_agent_is_not_silent_while_the_policy_thinks(stage):
    quiet = []

    async def slow():
        await asyncio.sleep(0.1)
        quiet.append(conversation.quiet())
        return "one"

    conversation, key = stage.begin()
    stage.script = [slow]
    client = openai.OpenAI(base_url=stage.endpoint.base_url, api_key=key)
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    async def later():
        await asyncio.sleep(0.01)
        return conversation.quiet()

    assert quiet == [0.0] and stage.do(later()) > 0


def test_what_keeps_the_policy_from_answering_is_no_fault_of_the_agent(stage):
    async def broken():
        raise OSError("the engine is gone")

    stage.script = [broken]
    with pytest.raises(OSError, match="the engine is gone"):
        stage.play(Asking())


def test_an_agent_without_room_for_more_has_failed_at_nothing(stage):
    stage.script, stage.turns = ["one", "two"], 2
    outcome, conversation = stage.play(Asking(questions=3))
    assert outcome == Outcome() and conversation.full == "turns"
    assert len(conversation.samples(KEY)) == 1


def test_an_agent_that_asks_nothing(stage):
    with pytest.raises(EpisodeFailed, match="asked the policy nothing"):
        stage.play(Asking(questions=0))


def test_a_cancelled_episode_gives_its_sampling_up(stage):
    given_up = asyncio.Event()

    async def slow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.set()
            raise

    stage.script = [slow]

    async def begun_and_cancelled():
        task = asyncio.create_task(stage.playing(Asking()))
        while not stage.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.wait_for(given_up.wait(), 10)
        return task.cancelled()

    assert stage.do(begun_and_cancelled())


# -- programs ----------------------------------------------------------------------------------------------------------

ASK = """
import json, os, sys, http.client
row = json.load(sys.stdin)
host = os.environ["OPENAI_BASE_URL"].removeprefix("http://").removesuffix("/v1")
head, body = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}, json.dumps({"messages": row["messages"]})
(policy := http.client.HTTPConnection(host)).request("POST", "/v1/chat/completions", body, head)
print("the policy says", answer := json.load(policy.getresponse())["choices"][0]["message"]["content"])
"""
OPENAI = """
import json, openai, sys
asked = json.load(sys.stdin)["messages"]
answer = openai.OpenAI().chat.completions.create(model="m", messages=asked).choices[0].message.content
print(json.dumps({"reward": len(answer)}))
"""


class InAThread:
    """Runs a program as the process of an agent does, which may wait for it."""

    def __init__(self, code: str, *flags: str) -> None:
        class Program(ProgramAgent):
            command = (sys.executable, *flags, "-c", code)

        self._agent = Program()

    async def run(self, row, base_url, key):
        return await asyncio.to_thread(asyncio.run, self._agent.run(row, base_url, key))


def program(stage, end: str):
    stage.script = ["4"]
    return stage.play(InAThread(ASK + end, "-S"))  # without the packages of this environment it begins at once


def test_a_program(stage, capfd):
    end = 'print(json.dumps({"reward": float(answer == str(row["columns"]["answer"])), "counts": {"looks": 2}}))'
    outcome, conversation = program(stage, end)
    assert outcome == Outcome(1.0, {"looks": 2})
    assert len(conversation.samples(KEY)) == 1
    assert capfd.readouterr().out == "the policy says 4\n"


def test_openais_library_finds_the_endpoint_by_itself(stage):
    stage.script = ["4"]
    assert stage.play(InAThread(OPENAI))[0] == Outcome(1)


@pytest.mark.parametrize("end", ["", "print(5)", "print('{')", "print('[' * 100_000)", "print('{\"answer\": 4}')"])
def test_a_program_that_says_nothing_of_a_reward(stage, end):
    assert program(stage, end)[0] == Outcome()


@pytest.mark.parametrize(
    ("end", "kind", "text"),
    [
        ("sys.exit(3)", "error", "exit code 3"),
        ('print(\'{"reward": "much"}\')', "error", "the reward much"),
        ("import os; os.kill(os.getpid(), 9)", "killed", "signal 9"),
    ],
)
def test_a_program_that_fails(stage, end, kind, text):
    with pytest.raises(EpisodeFailed, match=text) as caught:
        program(stage, end)
    assert caught.value.kind == kind


@pytest.mark.parametrize("command", [(), ("no-such-program",), ("/etc/passwd",)])
def test_a_program_that_is_not_there_is_found_before_any_episode(command):
    with pytest.raises(ConfigError, match="no such program"):
        type("Agent", (ProgramAgent,), {"command": command})
