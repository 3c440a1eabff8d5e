"""An environment in a process of its own, as the trainer sees it. Nothing that comes from there is trusted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from grpo_hpc.data.exact_json import to_json
from grpo_hpc.data.rows import ROLES, Row
from grpo_hpc.rollout.environments.frames import LONGEST, BadFrame, receive, send, untrusted
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Message, Opening, Reply, Turn

_CLOSE_SECONDS = 5.0
_MOST_CHARACTERS_SAID = 4000  # of why an episode failed
_LARGEST_REWARD = 1e30  # a sum over turns and its square are numbers, too


class Forked(Protocol):
    """The process of an episode."""

    async def connect(self) -> socket.socket:
        """Start it; the trainer's end of its socket."""

    async def end(self, gone: bool) -> str:
        """End it and all that it started; how it had ended by itself, if it had. ``gone``: it closed its socket."""


class EpisodeProcess:
    """Calls one object in the process of an episode.

    Args:
        forked: the process, not started yet.
        seconds: what a call may take.
    """

    def __init__(self, forked: Forked, seconds: float) -> None:
        self._forked, self._seconds = forked, seconds
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._over = False

    async def call(self, name: str, given: Sequence[Any], seconds: float | None = None) -> Any:
        """What the method ``name`` returns, as plain JSON.

        Args:
            given: values that :mod:`grpo_hpc.data.exact_json` can keep; of ``start`` and ``run`` the first is a row, of
                ``reply`` the one is a turn.
            seconds: what this call may take, in place of the limit for all calls.

        Raises:
            EpisodeFailed: it raised an error, took too long or died, or what it returned is of no use.
        """
        limit = self._seconds if seconds is None else seconds
        try:
            reader, writer = self._streams or await self._start()
            async with asyncio.timeout(limit):
                await send(writer, to_json({"call": name, "given": list(given)}))
                answer = untrusted(await receive(reader, LONGEST))
        except TimeoutError:
            await self._end()
            raise EpisodeFailed("timeout", f"{name} took more than {limit:g} s") from None
        except ConnectionError:
            how = await self._end(gone=True)
            raise EpisodeFailed("killed", f"its process ended in {name}: {how or 'it closed its socket'}") from None
        except BadFrame as error:
            await self._end()
            raise EpisodeFailed("error", f"{name} gave {error}") from None
        return _value(answer, name)

    async def close(self) -> None:
        """End the process."""
        await self._end()

    async def _start(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._over:
            raise EpisodeFailed("killed", "its process was ended before")
        self._streams = await asyncio.open_unix_connection(sock=await self._forked.connect())
        return self._streams

    async def _end(self, gone: bool = False) -> str:
        streams, self._streams, self._over = self._streams, None, True
        if streams is None:
            return ""
        streams[1].transport.abort()
        return await self._forked.end(gone)


class ProcessEnvironment:
    """An :class:`~grpo_hpc.rollout.environments.protocol.Environment` in a process of its own."""

    def __init__(self, process: EpisodeProcess) -> None:
        self._process = process
        self._answers = False

    async def start(self, row: Row) -> Opening:
        opening = _opening(await self._process.call("start", [asdict(row)]))
        self._answers = True
        return opening

    async def reply(self, turn: Turn) -> Reply:
        self._answers = False
        reply = _reply(await self._process.call("reply", [asdict(turn)]))
        self._answers = True
        return reply

    async def close(self) -> None:
        """Close the environment, unless it failed, and end its process."""
        try:
            if self._answers:
                await self._process.call("close", [], _CLOSE_SECONDS)
        except EpisodeFailed:
            pass
        finally:
            await self._process.close()


def _value(answer: Any, name: str) -> Any:
    if isinstance(answer, dict) and "value" in answer:
        return answer["value"]
    if isinstance(answer, dict) and isinstance(answer.get("text"), str) and isinstance(answer.get("failed"), str):
        kind = answer["failed"] if answer["failed"] in ("error", "timeout", "killed") else "error"
        raise EpisodeFailed(kind, answer["text"][:_MOST_CHARACTERS_SAID])
    raise EpisodeFailed("error", f"{name} gave an answer of no known form")


def _opening(value: Any) -> Opening:
    tools = value.get("tools") if isinstance(value, dict) else None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise EpisodeFailed("error", "start gave no list of tools")
    messages = _messages(value.get("messages"), "start")
    if not messages:
        raise EpisodeFailed("error", "start gave no message")
    return Opening(messages, tools)


def _reply(value: Any) -> Reply:
    if not isinstance(value, dict) or not isinstance(value.get("done"), bool):
        raise EpisodeFailed("error", "reply does not say whether the episode is over")
    messages = _messages(value.get("messages"), "reply")
    if not messages and not value["done"]:
        raise EpisodeFailed("error", "reply says nothing, and the episode is not over")
    return Reply(messages, value["done"], _reward(value.get("reward")), _counts(value.get("counts")))


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise EpisodeFailed("error", f"{name} gave no list of messages")
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise EpisodeFailed("error", f"{name} gave a message without a role among {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str | None):
            raise EpisodeFailed("error", f"{name} gave a message whose content is no text")
    return value


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and abs(value) <= _LARGEST_REWARD:
        return float(value)
    said = f"reply gave the reward {str(value)[:60]}, which is no finite number up to {_LARGEST_REWARD:g}"
    raise EpisodeFailed("error", said)


def _counts(value: Any) -> dict[str, int]:
    if isinstance(value, dict) and all(type(count) is int and 0 <= count < 2**31 for count in value.values()):
        return value
    raise EpisodeFailed("error", "reply gave counts that are no whole numbers")
