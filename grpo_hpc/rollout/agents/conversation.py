"""What the requests of one agent become: chats that are continued token by token, and the answers to them.

A request holds a whole chat. Where it goes on from the end of one that is known, the tokens that the policy sampled
there stay as they are, and what came since is added: one sample. Where it does not, because the agent changed what was
said, or lets several chats run, it opens another one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from grpo_hpc.rollout.agents.chat_request import ChatRequest, Refusal, digest_of, fingerprints
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Message, Turn

if TYPE_CHECKING:
    from grpo_hpc.rollout.engine import Completion
    from grpo_hpc.rollout.sample import Key, Sample

MOST_TIMES = 64
"""How often one answer is given: a client that asks for it for ever ends."""
_GIVEN_UP = ("abort", "error")

_Told = TypeVar("_Told")


class Transcript(Protocol):
    """A chat as tokens; :class:`grpo_hpc.rollout.chat.transcript.Transcript` is one."""

    messages: list[Message]
    opened: int
    text: str

    def open(self, messages: list[Message], tools: list[dict[str, Any]], template: Mapping[str, Any]) -> None: ...

    @property
    def tokens(self) -> np.ndarray: ...

    @property
    def opening(self) -> str: ...

    def said(self, completion: Completion) -> Turn: ...

    def heard(self, messages: list[Message]) -> bool: ...

    def samples(self, key: Key) -> list[Sample]: ...


@dataclass(frozen=True)
class Answer:
    """What the policy said to a request.

    Attributes:
        message: as the client is given it, and sends it back.
        finish: OpenAI's word: ``stop``, ``length`` or ``tool_calls``.
        read: tokens that the policy continued.
        completion: what it sampled.
    """

    message: Message
    finish: str
    read: int
    completion: Completion


@dataclass
class Asked:
    """A request, and its answer when there is one.

    Attributes:
        wanted: whether a client waits for it, or has been given it.
        times: how often it was asked.
    """

    _task: asyncio.Task[Answer]
    wanted: bool = True
    times: int = 0

    async def answer(self) -> Answer:
        """What the policy says.

        Raises:
            Refusal: it says nothing.
        """
        await asyncio.wait([self._task])  # whoever gives up waiting does not end it
        if self._task.cancelled():
            raise Refusal(410, "the episode has ended")
        if isinstance(error := self._task.exception(), Refusal):
            raise error
        if error is not None:  # not the client's matter; the conversation's `failure` has it
            raise Refusal(503, "the policy does not answer any more")
        return self._task.result()


@dataclass
class _Chat:
    """One chat of an episode.

    Attributes:
        end: the fingerprint of all of it; None while the policy speaks.
        answered: the number of its last turn within the episode; -1 when it has none.
    """

    transcript: Transcript
    end: bytes | None = None
    answered: int = -1


@dataclass(frozen=True)
class Sampling:
    """How the policy is asked in one episode.

    Attributes:
        transcript: makes an empty one.
        template: what the chat template is told beside messages; tools are those of a request.
        room: tokens that a turn may have, given those that it continues and those that the episode has sampled.
        sample: a completion of these tokens, for the turn of this number, with at most so many tokens, which ends
            behind one of these texts.
        turns: at most in an episode; None for any number.
    """

    transcript: Callable[[], Transcript]
    template: Mapping[str, Any]
    room: Callable[[int, int], int]
    sample: Callable[[np.ndarray, int, int, Sequence[str]], Awaitable[Completion]]
    turns: int | None = None


class Conversation:
    """One episode, as its agent's requests shape it. All of it runs on one event loop.

    Attributes:
        full: why a request was refused though nothing was wrong with it: ``length`` when there was no room for
            another token, ``turns`` when there was none for another turn; empty when none was.
        failure: its result is what kept the policy from answering; the agent is not at fault.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._chats: list[_Chat] = []
        self._asked: dict[bytes, list[Asked]] = {}
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._turns = self._sampled = 0
        self._quiet_since: float | None = asyncio.get_running_loop().time()
        self._closed = False
        self.full = ""
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def ask(self, request: ChatRequest, again: bool | None) -> Asked:
        """Let the policy speak, or find what it said to the same request before.

        Args:
            again: whether the client asks once more because it got no answer; None when it does not say.

        Raises:
            Refusal: it was found too often.
        """
        if self._closed:
            raise Refusal(410, "the episode has ended")
        known = self._asked.setdefault(request.digest, [])
        lost = [asked for asked in known if not asked.wanted]
        asked = lost[0] if lost else known[-1] if known and again is not False else None
        if asked is None:
            known.append(asked := Asked(self._begin(request)))
        asked.times, asked.wanted = asked.times + 1, True
        if asked.times > MOST_TIMES:
            text = f"this request was asked {MOST_TIMES} times, and has one answer"
            raise Refusal(400, f"{text}: ask with another `seed` for another one")
        return asked

    def quiet(self) -> float:
        """Seconds in which it has been the agent's turn; 0 while it is the policy's."""
        since = self._quiet_since
        return 0.0 if since is None else asyncio.get_running_loop().time() - since

    def close(self) -> None:
        """End the episode: what is still being sampled is given up, and changes nothing any more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    @property
    def transcripts(self) -> list[Transcript]:
        """Of every chat with an answer; the one that was answered last is the last."""
        answered = sorted((chat for chat in self._chats if chat.answered >= 0), key=lambda chat: chat.answered)
        return [chat.transcript for chat in answered]

    def samples(self, key: Key) -> list[Sample]:
        """One for each sequence that holds sampled tokens, numbered by branch in the order of their beginning."""
        found = [sample for chat in self._chats if chat.answered >= 0 for sample in chat.transcript.samples(key)]
        return [replace(sample, key=key._replace(branch=number)) for number, sample in enumerate(found)]

    def _begin(self, request: ChatRequest) -> asyncio.Task[Answer]:
        task = asyncio.create_task(self._sample(request))
        self._tasks.add(task)
        self._quiet_since = None
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._quiet_since = asyncio.get_running_loop().time()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Refusal) and not self.failure.done():
            self.failure.set_result(error)

    async def _sample(self, request: ChatRequest) -> Answer:
        """The chat is found before anything is awaited, so in the order of requests."""
        chat, end = self._found(request)
        tokens, number = chat.transcript.tokens, self._turns
        limit = self._room(len(tokens))
        self._turns += 1
        limit = limit if request.limit is None else min(limit, request.limit)
        completion = await self._sampling.sample(tokens, number, limit, request.stop)
        if completion.finish_reason in _GIVEN_UP:
            raise EpisodeFailed("error", f"the engine ended turn {number} with {completion.finish_reason!r}")
        self._sampled += len(completion.tokens)
        message = _as_told(chat.transcript.said(completion), request.stop)
        chat.end, chat.answered = fingerprints([message], end)[-1], number
        return Answer(message, _finish(message, completion.finish_reason), len(tokens), completion)

    def _room(self, read: int) -> int:
        """Tokens that the next turn may have."""
        turns = self._sampling.turns
        if turns is not None and self._turns >= turns:
            self.full = self.full or "turns"
            raise Refusal(400, f"the episode has had its {turns} turns", code="max_turns")
        limit = self._sampling.room(read, self._sampled)
        if limit < 1:
            self.full = self.full or "length"
            text = f"{read} tokens leave no room for another one in this episode"
            raise Refusal(400, text, "messages", "context_length_exceeded")
        return limit

    def _found(self, request: ChatRequest) -> tuple[_Chat, bytes]:
        try:
            return self._chat_of(request)
        except Exception as error:  # a template is a program, and what it is given is the agent's
            raise Refusal(400, f"the chat cannot be written: {type(error).__name__}: {error}", "messages") from error

    def _chat_of(self, request: ChatRequest) -> tuple[_Chat, bytes]:
        """The chat that ``request`` continues, the longest first, or a new one; and the fingerprint of the request."""
        known = {chat.end: chat for chat in self._chats if chat.end is not None}
        prints = fingerprints(request.messages, digest_of(request.tools))
        for count in range(len(prints) - 1, 0, -1):
            if chat := known.get(prints[count - 1]):
                chat.transcript.heard(_with_tokens(request.messages[count:]))
                chat.end = None
                return chat, prints[-1]
        chat = _Chat(self._sampling.transcript())
        template = {name: value for name, value in self._sampling.template.items() if name != "tools"}
        chat.transcript.open(_with_tokens(request.messages), _with_tokens(request.tools), template)
        self._chats.append(chat)
        return chat, prints[-1]


def _with_tokens(told: list[_Told]) -> list[_Told]:
    """``told``, in which no text holds half of a surrogate pair: that has no tokens.

    Raises:
        UnicodeEncodeError: one does.
    """
    json.dumps(told, ensure_ascii=False).encode()
    return told


def _as_told(turn: Turn, stops: Sequence[str]) -> Message:
    """What was said in ``turn``, up to the text that was to end it."""
    message = dict(turn.message)
    for stop in stops:
        message["content"] = message["content"].partition(stop)[0]
    return message


def _finish(message: Message, reason: str) -> str:
    """Why the turn ended, in OpenAI's words."""
    if reason == "length":
        return "length"
    return "tool_calls" if message.get("tool_calls") else "stop"
