"""What docs/agents.md shows works as it stands there."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path

import pytest

from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.agents.agent import outcome_of
from grpo_hpc.rollout.agents.chat_request import _KNOWN
from grpo_hpc.rollout.sample import Key

PAGE = (Path(__file__).parents[4] / "docs" / "agents.md").read_text()
OWN, PROGRAM, FRAMEWORK = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class AsItStands:
    """Runs the class ``Agent`` of a text as the process of an agent does."""

    def __init__(self, text: str) -> None:
        exec(text, found := {})
        self._agent = found["Agent"]()

    async def run(self, row, base_url, key):
        return outcome_of(await asyncio.to_thread(self._waited, row, base_url, key))

    def _waited(self, row, base_url, key):
        returned = self._agent.run(row, base_url, key)
        return asyncio.run(returned) if inspect.isawaitable(returned) else returned


@pytest.mark.parametrize(
    ("text", "script", "reward", "sequences"),
    [
        (OWN, ["3", "I think 4"], 1.0, ["3</s>I think 4</s>"]),
        (OWN, ["1", "2", "3"], 0.0, ["1</s>2</s>3</s>"]),
        (FRAMEWORK, ['CALL[["add", {"a": 1, "b": 3}]]', "4"], 1.0, ['CALL[["add", {"a": 1, "b": 3}]]</s>4</s>']),
    ],
)
def test_an_agent_of_the_page(stage, text, script, reward, sequences):
    stage.script = list(script)
    outcome, conversation = stage.play(AsItStands(text))
    assert outcome.reward == reward
    assert [stage.words.decode(sample.response) for sample in conversation.samples(Key(0, 0))] == sequences


def test_the_program_of_the_page():
    """Nobody has it, and that is said."""
    with pytest.raises(ConfigError, match="/home/me/agent"):
        exec(PROGRAM, {})


def test_every_key_of_a_request_that_is_known_stands_on_the_page():
    assert [name for name in _KNOWN if f"`{name}`" not in PAGE] == []
