"""An episode's other side: what the policy is told first, and what it hears after each of its turns.

An environment deals in messages and never sees a token. It lives as long as one episode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo_hpc.data.rows import Row

Message = dict[str, Any]
"""A message as chat templates read it: ``role``, ``content``, and perhaps ``tool_calls``, ``tool_call_id``, ``name``,
``reasoning_content``. Arguments of a tool call are an object, not JSON text."""


@dataclass(frozen=True)
class Opening:
    """How an episode begins.

    Attributes:
        messages: the chat up to where the policy is to speak.
        tools: descriptions of the functions that it may call, as JSON schemas in OpenAI's form.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Turn:
    """What the policy said.

    Attributes:
        number: of the turn within the episode, from 0.
        message: its text as the chat template would be given it back, thoughts and tool calls read out of it.
        text: all of it as it was sampled, without special tokens.
        finish: why it ended: ``stop``, ``length``, ``repetition``.
        problem: why a tool call that seems to be in it could not be read; the message is its text then.
    """

    number: int
    message: Message
    text: str
    finish: str
    problem: str = ""


@dataclass(frozen=True)
class Reply:
    """What the environment says to a turn.

    Attributes:
        messages: what the policy hears, the results of tools in the order of their calls; nothing when it is over.
        done: whether the episode is over.
        reward: for this turn; None where the environment gives none.
        counts: what happened in this turn, by name, for metrics: ``tool_calls``, ``tool_failures``.
    """

    messages: list[Message] = field(default_factory=list)
    done: bool = False
    reward: float | None = None
    counts: dict[str, int] = field(default_factory=dict)


class EpisodeFailed(Exception):
    """The environment cannot go on: its episode ends without a reward and without a vote in the baseline.

    Attributes:
        kind: ``error``, ``timeout`` or ``killed``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


class Environment(Protocol):
    """Answers the turns of one episode. Every method may raise :class:`EpisodeFailed`."""

    async def start(self, row: Row) -> Opening: ...

    async def reply(self, turn: Turn) -> Reply: ...

    async def close(self) -> None:
        """Give back what the episode holds; called once, whatever became of it."""
