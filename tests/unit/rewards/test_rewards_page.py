"""docs/rewards.md: its examples run, and every built-in function with every parameter is on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from grpo_hpc.config.sections import Rewards
from grpo_hpc.rewards.registry import described
from grpo_hpc.rewards.worker_pool import Task, WorkerPool

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text()
EXAMPLES = re.findall(r"```python\n# (\w+rewards\.py)\n(.*?)```", PAGE, re.DOTALL)
OFFERED = {"completions": ["please, 4"], "answer": ["4"], "prompts": [[{"role": "user", "content": "2 + 2"}]]}


@pytest.mark.parametrize(("name", "details"), [(name, details) for name, _, details in described()])
def test_every_built_in_function_is_on_the_page(name, details):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    for column in filter(None, details.get("columns", "").split(", ")):
        assert f"`{column}`" in row
    for parameter in filter(None, details.get("parameters", "").split(", ")):
        assert f"`{parameter.partition('=')[0]}`" in row


@pytest.mark.parametrize(("file", "text"), EXAMPLES)
def test_the_examples_run(file, text, tmp_path):
    (tmp_path / file).write_text(text)
    functions = re.findall(r"^(?:async )?def (\w+)\(completions", text, re.MULTILINE)
    assert functions
    pool = WorkerPool([f"{tmp_path / file}:{name}" for name in functions])
    try:
        outcomes = pool.run([Task(name, OFFERED) for name in functions])
    finally:
        pool.close()
    assert [(outcome.score, outcome.failure) for outcome in outcomes] == [(1.0, "")] * len(functions)


def test_the_run_file_of_the_page_is_one():
    section = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])["rewards"]
    Rewards.model_validate(section)
    assert len(EXAMPLES) >= 2
