"""Which parser reads a model, by its chat template: those that the package trl carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from grpo_hpc.rollout.chat.parser_choice import Choice, choose, seems_a_call


def auto(text, **options):
    return choose(text, "auto", "auto", **({"described": False} | options))


@pytest.mark.parametrize(
    ("name", "tools", "thoughts"),
    [
        ("qwen2_5", "hermes", "none"),
        ("qwen3", "hermes", "deepseek_r1"),
        ("qwen3_6", "qwen3_coder", "deepseek_r1"),
        ("llama3_1", "llama3_json", "none"),
        ("llama3_2", "llama3_json", "none"),
        ("glm4moe", "glm45", "glm45"),
        ("deepseekv3", "deepseek_v3", "deepseek_r1"),
        ("gptoss", "harmony", "harmony"),
        ("gemma4", "gemma4", "gemma4"),
        ("lfm2_2_5", "lfm2", "deepseek_r1"),
        ("nemotron_3_nano", "qwen3_coder", "deepseek_r1"),
        ("gemma3", "none", "none"),
    ],
)
def test_families(name, tools, thoughts):
    (folder,) = find_spec("trl").submodule_search_locations
    assert auto((Path(folder) / "chat_templates" / f"{name}.jinja").read_text()) == Choice(tools, thoughts)


def test_what_the_run_file_says_counts():
    assert choose("<tool_call> <think>", "mistral", "none", described=False) == Choice("mistral", "none")
    assert choose("", "openai", "openai_gptoss", described=False) == Choice("harmony", "harmony")


def test_tools_that_are_described_in_our_words_are_called_in_ours():
    assert auto("nothing", described=True).tools == "hermes"


def test_what_seems_a_call():
    calls = ['{"name": "add"', "a <tool_call> b", "[TOOL_CALLS]", "<|python_tag|>x", "commentary to=functions.add"]
    assert all(map(seems_a_call, calls))
    assert not any(map(seems_a_call, ["It is 5.", '{"a": "name"}', "tool_call", "<think>"]))
