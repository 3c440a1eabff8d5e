"""Rewards against data: what every reward needs is known, and there, before a run is queued."""

from __future__ import annotations

import re

import pytest

from grpo_hpc.data.rows import RESERVED_COLUMNS
from grpo_hpc.errors import ConfigError
from grpo_hpc.rewards.columns import lacking, require_columns
from grpo_hpc.rewards.registry import OFFERED, needed_columns, registered_names

OWN = """
from elsewhere import imported

def short(completions, prompts, level, hint="", *, longest: int = 3): ...

async def asked(completions, source, **columns): ...

class Model:
    def __init__(self, *, path): ...
    def __call__(self, completions, gold): ...
"""
NEEDED = {"exact_number": ["answer"], "format": []}


def test_what_rewards_need(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = [f"{tmp_path}/own.py:{name}" for name in ("short", "asked", "Model", "imported")]
    assert needed_columns([*own, "x=exact_number", "code", "cosine", "soft_overlong"]) == {
        "short": ["level"],
        "asked": ["source"],
        "Model": ["gold"],
        "imported": [],
        "x": ["answer"],
        "code": ["tests"],
        "cosine": ["solution"],
        "soft_overlong": [],
    }


def test_what_a_judge_needs_is_what_its_prompt_reads():
    prompt = (
        "{{ prompt }} {{ completion }} {{ messages | length }} {{ finish_reasons }} {{ right }} {{ range(3) | list }}"
    )
    prompt += "{% if hint is defined %}{{ hint }}{% endif %}{% for step in steps %}{{ step }}{% endfor %}"
    assert needed_columns(["j=judge"], {"j": {"prompt": prompt}}) == {"j": ["right", "steps"]}


@pytest.mark.parametrize("name", sorted(set(registered_names()) - {"judge"}))
def test_no_built_in_reward_needs_what_no_data_can_have(name):
    assert set(needed_columns([name])[name]) <= {"answer", "solution", "tests", "expected_tool_calls"}


@pytest.mark.parametrize(
    ("filled", "said"),
    [
        (
            {"anwser": 2, "id": 2},
            r"needs the column 'answer', and no row of d.jsonl has it.*mean anwser\? .*anwser, id",
        ),
        ({}, "no row of d.jsonl has it.*Its columns are: the chat alone"),
        ({"answer": 0}, "it is null in all 2 rows of d.jsonl"),
    ],
)
def test_a_column_without_a_value_in_any_row_is_refused(filled, said):
    with pytest.raises(ConfigError) as caught:
        require_columns(NEEDED, "d.jsonl", 2, filled)
    assert re.search(said, str(caught.value).replace("\n", " "))


def test_what_is_offered_besides_columns_can_be_no_column():
    assert set(OFFERED) - {"messages"} == set(RESERVED_COLUMNS), "a row's messages are its chat"


def test_a_column_with_a_value_in_some_row_is_enough():
    require_columns(NEEDED, "d.jsonl", 2, {"answer": 1})


def test_the_rewards_that_a_row_has_a_null_for():
    assert lacking(NEEDED, {"answer": None}) == lacking(NEEDED, {}) == {"exact_number"}
    assert lacking(NEEDED, {"answer": 0}) == set()
