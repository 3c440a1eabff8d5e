"""Classes with ``reset`` and ``step``: the interface of ms-swift's ``gym_env``, and that of Gymnasium.

Either has its observations as texts. An episode is over when ``step`` says so; each turn has the reward that it gave.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

from grpo_hpc.data.rows import Row
from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.environments.protocol import Message, Opening, Reply, Turn
from grpo_hpc.rollout.environments.user_code import resolved, row_seed

Params = Mapping[str, Any]


def gym_adapter(kind: type, params: Params) -> Callable[[], Any]:
    """Makes the environment of an episode from a class with ``reset`` and ``step``.

    Raises:
        ConfigError: ``reset`` has neither interface.
    """
    taken = [p for name, p in inspect.signature(kind.reset).parameters.items() if name != "self"]  # type: ignore[attr-defined]
    if any(p.name in ("seed", "options") for p in taken):
        return lambda: GymnasiumEpisode(kind(**params))
    if sum(p.kind is not p.KEYWORD_ONLY for p in taken) == 1:
        return lambda: SwiftEpisode(kind, params)
    raise ConfigError(
        f"{kind.__name__}.reset takes neither `seed` and `options`, as in Gymnasium, nor one `config`, as in ms-swift"
    )


class GymnasiumEpisode:
    """``reset(seed, options) -> observation, info`` and ``step(action) -> observation, reward, terminated, truncated,
    info``.

    The action is the text of a turn; ``options`` are the columns of the row, and ``seed`` is the row's, so the episodes
    of a group begin alike. The first observation goes behind the last message of the row.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def start(self, row: Row) -> Opening:
        offered = {"seed": row_seed(row), "options": dict(row.columns)}
        parameters = inspect.signature(self._inner.reset).parameters
        observation, _ = await resolved(self._inner.reset(**{n: v for n, v in offered.items() if n in parameters}))
        return Opening(_with_observation(row.messages, _text(observation)))

    async def reply(self, turn: Turn) -> Reply:
        action = turn.message.get("content") or ""
        observation, reward, terminated, truncated, _ = await resolved(self._inner.step(action))
        return _reply(observation, reward, terminated or truncated)

    async def close(self) -> None:
        await _closed(self._inner)


class SwiftEpisode:
    """``reset(config) -> observation, info, system message`` and ``step(messages) -> observation, reward, done, info``.

    As in ms-swift the chat begins with what ``reset`` gives, and not with the row's messages. ``config`` has
    ``messages`` and ``data_dict`` of the row, and the class is made with the column ``env_config`` where it takes one.
    """

    def __init__(self, kind: type, params: Params) -> None:
        self._kind, self._params = kind, params
        self._inner: Any = None
        self._chat: list[Message] = []

    async def start(self, row: Row) -> Opening:
        self._inner = self._made(row)
        config = SimpleNamespace(messages=deepcopy(row.messages), data_dict=dict(row.columns))
        observation, _, system = await resolved(self._inner.reset(config))
        self._chat = [{"role": "system", "content": _text(system)}] if system else []
        self._chat.append({"role": "user", "content": _text(observation)})
        return Opening(list(self._chat))

    async def reply(self, turn: Turn) -> Reply:
        self._chat.append(turn.message)
        observation, reward, done, _ = await resolved(self._inner.step(deepcopy(self._chat)))
        reply = _reply(observation, reward, done)
        self._chat += reply.messages
        return reply

    async def close(self) -> None:
        await _closed(self._inner)

    def _made(self, row: Row) -> Any:
        if "env_config" in inspect.signature(self._kind).parameters:
            return self._kind({**self._params, **(row.columns.get("env_config") or {})})
        return self._kind(**self._params)


def _reply(observation: Any, reward: Any, done: Any) -> Reply:
    value = float(reward)
    if not math.isfinite(value):
        raise ValueError(f"step gave the reward {value}")
    if done:
        return Reply(done=True, reward=value)
    return Reply([{"role": "user", "content": _text(observation)}], reward=value)


def _with_observation(messages: list[Message], text: str) -> list[Message]:
    """One message for the user, not two in a row: some chat templates refuse these."""
    last = messages[-1] if messages else {}
    if last.get("role") == "user" and isinstance(last.get("content"), str):
        return [*messages[:-1], last | {"content": f"{last['content']}\n\n{text}"}]
    return [*messages, {"role": "user", "content": text}]


def _text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"an observation is a {type(observation).__name__}, not a text that a policy can read")
    return observation


async def _closed(inner: Any) -> None:
    if hasattr(inner, "close"):
        await resolved(inner.close())
