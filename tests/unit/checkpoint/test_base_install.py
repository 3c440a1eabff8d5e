"""The commands as they are installed without an extra: they work, or they say what to install."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Nothing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
from grpo_hpc.cli import main
main(sys.argv[1:])
"""
OPTIONAL = {"numpy", "xxhash", "torch", "safetensors", "transformers", "vllm", "megatron"}


def run(*words, missing=frozenset(OPTIONAL)):
    command = [sys.executable, "-c", WITHOUT.format(missing=set(missing)), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_inspect_needs_nothing_more(model, megatron):
    for folder in (model, megatron):
        shown = run("checkpoint", "inspect", folder, "--json")
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["tensors"] >= 10


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "{model}", "{new}"),
        ("convert", "{megatron}", "{new}"),
        ("verify", "{megatron}"),
        ("verify", "{model}", "{megatron}"),
        ("reshard", "{megatron}", "{new}"),
        ("merge-lora", "{model}", "{model}", "{new}"),
        ("extract-lora", "{model}", "{model}", "{new}"),
    ],
    ids=lambda words: " ".join(words),
)
def test_the_others_say_what_to_install(words, model, megatron, tmp_path):
    said = run("checkpoint", *(word.format(model=model, megatron=megatron, new=tmp_path / "new") for word in words))
    assert said.returncode == 2
    assert "Traceback" not in said.stderr
    package, extra = re.search(r"needs the package (\w+),.*\npip install 'grpo-hpc\[(\w+)\]'", said.stderr).groups()
    assert any(re.match(rf"{package}\b", wanted) for wanted in EXTRAS[extra])
    assert not (tmp_path / "new").exists()


def test_conversion_needs_the_small_extra_alone(model, tmp_path):
    heavy = OPTIONAL - {re.match(r"\w+", wanted)[0] for wanted in EXTRAS["checkpoint"]}
    for words in (
        ("convert", model, tmp_path / "megatron", "--workers", "1"),
        ("convert", tmp_path / "megatron", tmp_path / "back", "--workers", "1"),
        ("verify", model, tmp_path / "back", "--workers", "1"),
        ("verify", tmp_path / "megatron", "--workers", "1"),
        ("reshard", tmp_path / "megatron", tmp_path / "recut", "--tp", "2", "--workers", "1"),
    ):
        done = run("checkpoint", *words, missing=heavy)
        assert done.returncode == 0, done.stderr
