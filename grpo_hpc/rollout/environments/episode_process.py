"""What the process of one episode does: it makes the environment and answers calls until the trainer has gone."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any

from grpo_hpc.data.exact_json import from_json
from grpo_hpc.data.rows import Row
from grpo_hpc.redaction import redacted
from grpo_hpc.rewards.calling import described
from grpo_hpc.rollout.environments.frames import LONGEST, receive, send
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Opening, Reply, Turn
from grpo_hpc.rollout.environments.user_code import as_json, resolved, row_seed

_MOST_CHARACTERS = 150_000  # of what a reply says; in UTF-8 they fit into a frame, whatever they are
_RETURNED = {"start": Opening, "reply": Reply}


async def serve(connection: socket.socket, make: Callable[[], Any]) -> None:
    """Answer calls to the environment that ``make`` makes at the first of them."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    environment: Any = None
    while True:
        try:
            asked = from_json(await receive(reader))
        except ConnectionError:
            return
        try:
            given = _given(asked)
            environment = make() if environment is None else environment
            answer = {"value": await _value(environment, asked["call"], given)}
        except EpisodeFailed as error:
            answer = {"failed": error.kind, "text": redacted(error.text)}
        except BaseException as error:  # SystemExit too: the episode is to be told why it ends
            answer = {"failed": "error", "text": redacted(" ".join(filter(None, described(error))))}
        await send(writer, _encoded(answer))


def _given(asked: dict[str, Any]) -> list[Any]:
    if asked["call"] == "reply":
        return [Turn(**asked["given"][0])]
    if asked["given"]:
        row = Row(**asked["given"][0])
        random.seed(row_seed(row))
        return [row, *asked["given"][1:]]
    return []


async def _value(environment: Any, name: str, given: list[Any]) -> Any:
    returned = await resolved(getattr(environment, name)(*given))
    wanted = _RETURNED.get(name)
    if wanted is not None and not isinstance(returned, wanted):
        raise TypeError(f"{name} returned a {type(returned).__name__}, not a {wanted.__name__}")
    if isinstance(returned, Reply):
        return asdict(returned) | {"messages": _cut(returned.messages)}
    return asdict(returned) if is_dataclass(returned) and not isinstance(returned, type) else returned


def _cut(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts of a reply so short that the trainer takes them; it cuts them again, by tokens."""
    each = _MOST_CHARACTERS // max(1, len(messages))
    return [_shortened(message, each) for message in messages]


def _shortened(message: dict[str, Any], most: int) -> dict[str, Any]:
    text = message.get("content")
    if not isinstance(text, str) or len(text) <= most:
        return message
    return message | {"content": f"{text[:most]}\n... {len(text) - most:,} characters are left out"}


def _encoded(answer: dict[str, Any]) -> bytes:
    try:
        data = as_json(answer).encode(errors="replace")
    except (TypeError, ValueError, RecursionError) as error:
        data = json.dumps({"failed": "error", "text": f"what it returned is no JSON: {error}"}).encode()
    if len(data) > LONGEST:
        text = f"what it returned has {len(data):,} bytes; {LONGEST:,} at most"
        data = json.dumps({"failed": "error", "text": text}).encode()
    return data
