"""The same episode by every face that an environment may have: one and the same sample comes of it."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from chat_families import FAMILIES, save_family

from grpo_hpc.config.sections import Rewards, Rollout
from grpo_hpc.data.rows import Row
from grpo_hpc.data.tokenizer import Tokenizer
from grpo_hpc.rewards.runner import RewardRunner
from grpo_hpc.rollout.agents.agent_episode import play
from grpo_hpc.rollout.agents.agent_player import AgentEpisodes
from grpo_hpc.rollout.agents.chat_endpoint import ChatEndpoint
from grpo_hpc.rollout.agents.conversation import Conversation, Sampling
from grpo_hpc.rollout.agents.process_agent import ProcessAgent
from grpo_hpc.rollout.chat.rendering import Renderer
from grpo_hpc.rollout.chat.transcript import Transcript
from grpo_hpc.rollout.engine import Completion
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool
from grpo_hpc.rollout.episodes import EnvironmentEpisodes
from grpo_hpc.rollout.sample import Key, Sample
from grpo_hpc.rollout.scoring import Scorer

KEY = Key(7, 2)
ROW = Row("rows:1", [{"role": "user", "content": "2 + 3?"}], {"answer": 5})
ADD = """
def add(a: int, b: int) -> int:
    '''The sum of two numbers.

    Args:
        a: the first.
        b: the second.
    '''
    return a + b
"""
FACES = {
    "tools": ("calculator.py", ADD),
    "class": ("game.py:Calculator", ADD + """
from grpo_hpc.rollout.environments.protocol import Opening, Reply
from grpo_hpc.rollout.environments.tool_functions import Tool

class Calculator:
    def start(self, row):
        return Opening(row.messages, [Tool(add).described])

    def reply(self, turn):
        calls = turn.message.get("tool_calls", [])
        said = [(call["id"], str(add(**call["function"]["arguments"]))) for call in calls]
        told = [{"role": "tool", "name": "add", "tool_call_id": name, "content": text} for name, text in said]
        return Reply(told, done=not calls)
"""),
    "agent": ("agent.py:Calculator", ADD + """
import json
import openai
from grpo_hpc.rollout.environments.tool_functions import Tool

class Calculator:
    def run(self, row, base_url, key):
        chat = list(row.messages)
        client = openai.OpenAI(base_url=base_url, api_key=key)
        while True:
            said = client.chat.completions.create(model="policy", messages=chat, tools=[Tool(add).described])
            chat.append(said.choices[0].message)
            if not chat[-1].tool_calls:
                return float(chat[-1].content.strip() == str(row.columns["answer"]))
            for call in chat[-1].tool_calls:
                result = str(add(**json.loads(call.function.arguments)))
                chat.append({"role": "tool", "tool_call_id": call.id, "content": result})
"""),
    "gym": ("guess.py:Guess", """
class Guess:
    def reset(self, seed=None, options=None):
        return "Guess a number.", {}

    def step(self, action):
        right = action.strip() == "5"
        return ("" if right else "It is another one."), float(right), right, False, {}
"""),
    "guessing agent": ("guesser.py:Guess", """
import openai

class Guess:
    async def run(self, row, base_url, key):
        chat = [{"role": "user", "content": row.messages[0]["content"] + "\\n\\nGuess a number."}]
        async with openai.AsyncOpenAI(base_url=base_url, api_key=key) as client:
            while True:
                said = (await client.chat.completions.create(model="policy", messages=chat)).choices[0].message.content
                chat += [{"role": "assistant", "content": said}, {"role": "user", "content": "It is another one."}]
                if said.strip() == "5":
                    return 1.0
"""),
}  # fmt: skip


class Script:
    """A policy that says what is written down, cut into tokens as no tokenizer would: a byte each."""

    def __init__(self, tokenizer: Tokenizer, renderer: Renderer, turns: list[str]) -> None:
        inner = tokenizer.of_transformers
        self._turns = [
            [token for letter in turn for token in inner.encode(letter, add_special_tokens=False)] for turn in turns
        ]
        self._end = renderer.stop_token_ids[0]

    async def sample(self, tokens, turn: int, limit: int, stop=()) -> Completion:
        found = np.array([*self._turns[turn], self._end], np.int32)
        logprobs = -np.arange(1, len(found) + 1, dtype=np.float32) / 100
        return Completion(found, logprobs, "stop")


async def by_environment(pool: EnvironmentPool, transcript: Transcript, policy: Script) -> list[Sample]:
    environment = pool.new("episode")
    opening = await environment.start(ROW)
    transcript.open(opening.messages, opening.tools, ROW.template)
    for turn in range(10):
        completion = await policy.sample(transcript.tokens, turn, 100)
        reply = await environment.reply(transcript.said(completion))
        if reply.done:
            break
        transcript.heard(reply.messages)
    await environment.close()
    return transcript.samples(KEY)


async def by_agent(pool: EnvironmentPool, transcript: Transcript, policy: Script, tokenizer: Tokenizer) -> list[Sample]:
    endpoint = ChatEndpoint(tokenizer.decode, {}, print)
    await endpoint.start()
    conversation = Conversation(Sampling(lambda: transcript, ROW.template, lambda read, sampled: 100, policy.sample))
    outcome = await play(endpoint, ProcessAgent(pool.process("episode")), ROW, conversation, 60)
    await endpoint.close()
    assert outcome.reward == 1.0
    return conversation.samples(KEY)


def sample_of(folder: Path, tmp_path: Path, face: str, turns: list[str]) -> Sample:
    name, text = FACES[face]
    (tmp_path / name.partition(":")[0]).write_text(text)
    tokenizer = Tokenizer(str(folder))
    renderer = Renderer(tokenizer)
    transcript, policy = Transcript(renderer), Script(tokenizer, renderer, turns)
    pool = EnvironmentPool(str(tmp_path / name), log=tmp_path / "printed.log")
    try:
        agent = pool.start() == "agent"
        work = by_agent(pool, transcript, policy, tokenizer) if agent else by_environment(pool, transcript, policy)
        (sample,) = asyncio.run(work)
    finally:
        pool.close()
    return sample


def equal(one: Sample, other: Sample) -> bool:
    return one.key == other.key and all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Sample)[1:]
    )


@pytest.mark.parametrize("family", ["qwen3", "glm"])
def test_a_calculator_by_tools_by_a_class_and_by_an_agent(tmp_path, family):
    folder = save_family(tmp_path / "model", family)
    turns = [FAMILIES[family].call, "5"]
    one, *others = [sample_of(folder, tmp_path, face, turns) for face in ("tools", "class", "agent")]
    assert len(one.turns) == 2 and all(equal(one, other) for other in others)


def test_a_game_by_gymnasium_and_by_an_agent(tmp_path):
    folder = save_family(tmp_path / "model", "llama3")
    one, other = [sample_of(folder, tmp_path, face, ["4", "5"]) for face in ("gym", "guessing agent")]
    assert len(one.turns) == 2 and equal(one, other)


@pytest.mark.parametrize("face", ["gym", "guessing agent"])
def test_rewards_see_what_the_template_itself_began_the_last_turn_with(tmp_path, face):
    """It opens <think> in every turn, and what the policy says closes it."""
    name, text = FACES[face]
    (tmp_path / name.partition(":")[0]).write_text(text)
    tokenizer = Tokenizer(str(save_family(tmp_path / "model", "qwen3.6")))
    renderer = Renderer(tokenizer)
    policy = Script(tokenizer, renderer, ["No tags.", "A thought.\n</think>\n\n<answer>4</answer>"])
    rollout = Rollout(environment=str(tmp_path / name), max_turns=2, max_completion_length=200, vllm_max_model_len=2000)
    rewards = Rewards(reward_funcs=["format"])
    pool = EnvironmentPool(rollout.environment, log=tmp_path / "printed.log")
    plays = AgentEpisodes if pool.start() == "agent" else EnvironmentEpisodes
    player, runner = plays(rollout, pool, renderer, 2000), RewardRunner(rewards.called, {}, {}, workers=1)
    runner.start()
    scorer = Scorer(rewards, tokenizer, runner)

    async def scored():
        episode = await player.play(KEY, ROW, np.array(tokenizer.encode(ROW), np.int32), policy.sample)
        await player.close()
        return episode, await scorer.score(episode, ROW)

    try:
        episode, (found,) = asyncio.run(scored())
    finally:
        scorer.close()
    assert episode.opening == "<think>\n" and not episode.failure
    assert len(found.sample.turns) == 2 and found.rewards == {"format": 1.0}
