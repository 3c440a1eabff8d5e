"""An endpoint over real sockets; its policy says what a test has written, in tokens that no tokenizer would make."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.agents.agent_episode import play
from grpo_hpc.rollout.agents.chat_endpoint import ChatEndpoint
from grpo_hpc.rollout.agents.conversation import Conversation, Sampling
from grpo_hpc.rollout.environments.protocol import Message, Turn
from grpo_hpc.rollout.sample import Key, Sample

ROW = Row("row:1", [{"role": "user", "content": "hello"}], {"answer": 4})
END = 1


@dataclass(frozen=True)
class Said:
    """A stand-in for the engine's completion, which needs torch."""

    tokens: np.ndarray
    logprobs: np.ndarray
    finish_reason: str = "stop"
    version: int = 0
    routing: None = None


class Words:
    """A vocabulary: a character is a token, and so is every pair of characters."""

    def __init__(self) -> None:
        self._of = ["", "</s>"]

    def encode(self, text: str, size: int = 1) -> list[int]:
        pieces = [text[place : place + size] for place in range(0, len(text), size)]
        self._of += [piece for piece in dict.fromkeys(pieces) if piece not in self._of]
        return [self._of.index(piece) for piece in pieces]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self._of[token] for token in tokens)


@dataclass
class Chat:
    """A transcript in the simplest format; an answer that begins with ``CALL`` is JSON of tool calls."""

    words: Words
    turns: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)

    def open(self, messages: list[Message], tools: list[dict[str, Any]], template: dict[str, Any]) -> None:
        if any(message["content"] == "forbidden" for message in messages):
            raise ConfigError("is refused by the model's chat template: TemplateError: no")
        if any(message["content"] == "strange" for message in messages):
            raise KeyError("what a template may raise")
        self._foreign("".join(f"[{tool['function']['name']}]" for tool in tools))
        self.heard(messages)

    @property
    def tokens(self) -> np.ndarray:
        return np.array(self.ids, np.int32)

    def said(self, completion: Said) -> Turn:
        self.ids += completion.tokens.tolist()
        self.mask += [True] * len(completion.tokens)
        text = self.words.decode(completion.tokens).removesuffix("</s>")
        message: Message = {"role": "assistant", "content": text}
        if text.startswith("CALL"):
            calls = [{"function": {"name": name, "arguments": a}} for name, a in json.loads(text[4:])]
            calls = [{"id": f"call000{number:02}", "type": "function"} | call for number, call in enumerate(calls)]
            message = {"role": "assistant", "content": "", "tool_calls": calls}
        elif "|" in text:
            message["reasoning_content"], _, message["content"] = text.partition("|")
        self.turns.append(sum(self.mask))
        return Turn(len(self.turns) - 1, message, text, completion.finish_reason)

    def heard(self, messages: list[Message]) -> bool:
        for message in messages:
            calls = json.dumps(message["tool_calls"]) if "tool_calls" in message else ""
            self._foreign(f"<{message['role']}>{message['content']}{calls}</s>")
        self._foreign("<assistant>")
        return True

    def samples(self, key: Key) -> list[Sample]:
        n = sum(self.mask)
        turns = np.array([[end, 0] for end in self.turns], np.int32)
        zeros = np.zeros(n, np.float32), np.zeros(n, np.int32)
        return [Sample(key, self.tokens, np.array(self.mask), *zeros, turns)]

    def _foreign(self, text: str) -> None:
        tokens = self.words.encode(text)
        self.ids += tokens
        self.mask += [False] * len(tokens)


class Stage:
    """Runs an endpoint on an event loop in another thread.

    Attributes:
        script: what the policy says next; a callable is called with the seconds it is given to think, and may raise.
        asked: what the policy was asked, as ``(text, turn, limit, stop)``.
        said: what people were told.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.words, self.said, self.asked = Words(), list[str](), list[tuple]()
        self.script: list[str | Callable[[], Coroutine[Any, Any, str]]] = []
        self.context, self.turns = 10_000, None
        self.endpoint = ChatEndpoint(self.words.decode, {"temperature": 1.0}, self.said.append)
        self.do(self.endpoint.start())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def begin(self) -> tuple[Conversation, str]:
        """An episode, and its key."""

        async def admit() -> tuple[Conversation, str]:
            conversation = self.conversation()
            return conversation, self.endpoint.admit(conversation)

        return self.do(admit())

    def play(self, agent: Any, silence_s: float = 20.0) -> tuple[Any, Conversation]:
        """What came of an episode, and what was said in it."""
        return self.do(self.playing(agent, silence_s))

    async def playing(self, agent: Any, silence_s: float = 20.0) -> tuple[Any, Conversation]:
        conversation = self.conversation()
        return await play(self.endpoint, agent, ROW, conversation, silence_s), conversation

    def conversation(self) -> Conversation:
        room = lambda read, sampled: self.context - read  # noqa: E731
        return Conversation(Sampling(lambda: Chat(self.words), {}, room, self._sample, self.turns))

    async def _sample(self, tokens: np.ndarray, turn: int, limit: int, stop: Sequence[str]) -> Said:
        self.asked.append((self.words.decode(tokens), turn, limit, tuple(stop)))
        text = self.script.pop(0)
        text = text if isinstance(text, str) else await text()
        found = [*self.words.encode(text, 2), END]
        reason = "stop" if len(found) <= limit else "length"
        return Said(np.array(found[:limit], np.int32), np.full(len(found[:limit]), -0.5, np.float32), reason)

    def close(self) -> None:
        self.do(self.endpoint.close())
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()
