"""docs/environments.md: its examples play, its run files are ones, and every key is on it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_hpc.config import load_run
from grpo_hpc.config.rules import meaningless
from grpo_hpc.data.rows import Row
from grpo_hpc.rollout.environments.environment_pool import EnvironmentPool
from grpo_hpc.rollout.environments.protocol import Opening, Reply, Turn

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "environments.md").read_text()
FILES = dict(re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
RUN_FILES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def said(text: str, *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": text} | ({"tool_calls": made} if made else {})


def played(pool: EnvironmentPool, *says: dict[str, Any]) -> tuple[Opening, list[Reply]]:
    async def play() -> tuple[Opening, list[Reply]]:
        environment = pool.new("0/0")
        opening = await environment.start(Row("rows:1", [{"role": "user", "content": "Begin."}], {"seed": 1}))
        turns = [Turn(number, message, message["content"], "stop") for number, message in enumerate(says)]
        replies = [await environment.reply(turn) for turn in turns]
        await environment.close()
        return opening, replies

    return asyncio.run(play())


def test_the_functions_of_the_page(pool_of: Callable[..., EnvironmentPool]) -> None:
    calls = [("population", {"city": "Paris"}), ("weather", {"city": "Rome", "days": 2}), ("population", {"city": "X"})]
    opening, (first, last) = played(pool_of(FILES["my_tools.py"]), said("", *calls), said("fine"))
    assert [tool["function"]["name"] for tool in opening.tools] == ["weather", "population"]
    assert [message["content"] for message in first.messages] == [
        "2100000",
        "Rome: sunny, sunny",
        "Error: KeyError: 'X'",
    ]
    assert last.done


def test_the_game_of_the_page(pool_of: Callable[..., EnvironmentPool]) -> None:
    opening, replies = played(pool_of(FILES["my_game.py"], "Guess", {"highest": 4}), *(said(f" {n}") for n in range(5)))
    assert opening.messages == [{"role": "user", "content": "Begin.\n\nGuess a number from 0 to 4."}]
    assert sum(reply.reward or 0 for reply in replies) == 1.0


def test_the_class_of_the_page(pool_of: Callable[..., EnvironmentPool]) -> None:
    _, replies = played(pool_of(FILES["my_env.py"], "Interview"), said("please"), said("a"), said("b"))
    assert [(reply.reward, reply.done) for reply in replies] == [(0.1, False), (0.1, False), (1.0, True)]
    assert replies[0].counts == {"polite": 1}


@pytest.mark.parametrize("sections", RUN_FILES)
def test_run_files_of_the_page(sections: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    values = yaml.safe_load(QUICKSTART.read_text())
    for section, keys in sections.items():
        values[section] = values.get(section, {}) | keys
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert load_run(tmp_path / "run.yaml").rollout.environment


def test_every_key_is_on_the_page() -> None:
    keys = {key.partition(".")[2] for key in meaningless(load_run(QUICKSTART)) if "environment" in key}
    assert len(keys) == 4
    keys |= {"environment", "max_turns", "max_observation_tokens", "completion_length_limit_scope", "thinking_history"}
    assert [key for key in keys | {"tool_parser", "reasoning_parser"} if f"`{key}`" not in PAGE] == []
