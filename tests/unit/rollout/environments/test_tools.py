"""Functions as tools: what the policy is told of them, and what it hears when it calls them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from grpo_hpc.data.rows import Row
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool
from grpo_hpc.rollout.environments.protocol import EpisodeFailed, Reply, Turn
from grpo_hpc.rollout.environments.tool_functions import Tool, ToolEnvironment

ROW = Row("rows:1", [{"role": "user", "content": "2 + 2?"}], {})


@dataclass
class Place:
    city: str
    country: str = "FR"


def weather(place: Place, days: Annotated[int, Field(ge=1, le=7)] = 1, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """Forecast of the weather.

    It knows Europe only.

    Args:
        place: where,
            with its country.
        days (int): how many.

    Returns:
        temperatures.
    """
    return {"city": place.city, "unit": unit, "degrees": [20] * days}


async def search(words: list[str], wait: float = 0.0) -> str:
    """Look words up."""
    await asyncio.sleep(wait)
    return ", ".join(words)


def broken(x: int) -> float:
    """Divide by it."""
    return 1 / x


def leaves() -> None:
    """End the program."""
    raise SystemExit(2)


def gives_up() -> None:
    """End the episode."""
    raise EpisodeFailed("error", "the service is down")


def odd() -> Any:
    """Return what is no JSON."""
    return object()


ENVIRONMENT = ToolEnvironment([Tool(f) for f in (weather, search, broken, leaves, gives_up, odd)])


def called(*calls: tuple[Any, Any]) -> Turn:
    made = [
        {"type": "function", "id": f"c{n}", "function": {"name": a, "arguments": b}} for n, (a, b) in enumerate(calls)
    ]
    return Turn(0, {"role": "assistant", "content": "", "tool_calls": made}, "", "stop")


def replied(turn: Turn) -> Reply:
    return asyncio.run(ENVIRONMENT.reply(turn))


def test_a_function_is_described_by_hints_and_docstring() -> None:
    described = asyncio.run(ENVIRONMENT.start(ROW)).tools[0]["function"]
    assert described["name"] == "weather"
    assert described["description"] == "Forecast of the weather.\n\nIt knows Europe only."
    parameters = described["parameters"]
    assert parameters["required"] == ["place"]
    assert parameters["properties"]["place"]["description"] == "where, with its country."
    days = {"default": 1, "description": "how many.", "maximum": 7, "minimum": 1, "type": "integer"}
    assert parameters["properties"]["days"] == days
    assert parameters["properties"]["unit"] == {"default": "C", "enum": ["C", "F"], "type": "string"}
    assert parameters["$defs"]["Place"]["properties"]["country"] == {"default": "FR", "type": "string"}


def test_results_come_in_the_order_of_the_calls() -> None:
    reply = replied(
        called(
            ("search", {"words": ["slow"], "wait": 0.1}),
            ("weather", {"place": {"city": "Paris"}, "days": 2}),
            ("search", {"words": ["a", "b"]}),
        )
    )
    assert not reply.done
    assert [m["content"] for m in reply.messages] == [
        "slow",
        '{"city": "Paris", "unit": "C", "degrees": [20, 20]}',
        "a, b",
    ]
    assert [(m["role"], m["name"], m["tool_call_id"]) for m in reply.messages] == [
        ("tool", "search", "c0"),
        ("tool", "weather", "c1"),
        ("tool", "search", "c2"),
    ]
    assert reply.counts == {"tool_calls": 3, "tool_failures": 0}


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("wether", {}, "Error: there is no function 'wether'; there is weather, search, broken"),
        (None, {}, "Error: there is no function 'None'"),
        ("weather", '{"place": ', "Error: the arguments of weather must be a JSON object"),
        ("weather", None, "Error: the arguments of weather must be a JSON object"),
        ("weather", {}, "Error: weather needs the argument place"),
        ("weather", {"place": {"city": "x"}, "day": 1}, "Error: weather has no argument day; it has place, days, unit"),
        (
            "weather",
            {"place": {"city": "x"}, "days": "two"},
            "Error: argument days of weather: Input should be a valid",
        ),
        ("weather", {"place": {"city": "x"}, "days": 8}, "Error: argument days of weather: Input should be less than"),
        ("weather", {"place": {}}, "Error: weather needs the argument place.city"),
        ("broken", {"x": 0}, "Error: ZeroDivisionError: division by zero"),
        ("leaves", {}, "Error: SystemExit: 2"),
        ("odd", {}, "Error: TypeError: an object of the type object is neither text nor JSON"),
    ],
)
def test_a_wrong_call_is_told_to_the_policy(name: Any, arguments: Any, says: str) -> None:
    reply = replied(called(("search", {"words": ["x"]}), (name, arguments)))
    assert reply.messages[0]["content"] == "x"
    assert reply.messages[1]["content"].startswith(says)
    assert reply.counts == {"tool_calls": 2, "tool_failures": 1}
    assert not reply.done


def test_a_turn_without_a_call_ends_the_episode() -> None:
    assert replied(Turn(1, {"role": "assistant", "content": "4"}, "4", "stop")) == Reply(done=True)


def test_a_call_that_cannot_be_read_is_told_to_the_policy() -> None:
    reply = replied(Turn(0, {"role": "assistant", "content": "<tool_call>{"}, "<tool_call>{", "stop", "no JSON in it"))
    assert reply.messages == [{"role": "user", "content": "Error: no JSON in it"}]
    assert (reply.done, reply.counts) == (False, {"tool_calls": 1, "tool_failures": 1})


def test_a_tool_may_give_the_episode_up() -> None:
    with pytest.raises(EpisodeFailed, match="the service is down"):
        replied(called(("gives_up", {})))


def test_each_episode_has_the_globals_of_a_file_for_itself(pool_of: Callable[..., EnvironmentPool]) -> None:
    text = '''
import random

_notes = []


def note(text: str) -> int:
    """Keep a note, and say how many there are."""
    _notes.append(text)
    return len(_notes)


def dice() -> float:
    """Throw dice."""
    return random.random()


def long() -> str:
    """A book."""
    return "x" * 10**8
'''
    pool = pool_of(text)
    assert pool.start() == "tools"

    async def episode(name: str) -> list[str]:
        environment = pool.new(name)
        await environment.start(ROW)
        turns = [called(("note", {"text": "a"}), ("note", {"text": "b"})), called(("dice", {})), called(("long", {}))]
        replies = [await environment.reply(turn) for turn in turns]
        await environment.close()
        return [message["content"] for reply in replies for message in reply.messages]

    async def both() -> list[list[str]]:
        return await asyncio.gather(episode("0/0"), episode("0/1"))

    first, second = asyncio.run(both())
    assert first == second
    assert first[:2] == ["1", "2"]
    assert len(first[3]) < 200_000
    assert first[3].endswith("99,850,000 characters are left out")
