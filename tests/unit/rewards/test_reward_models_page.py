"""The run files of "Reward models" and "Judges" in docs/rewards.md load, and their parameters are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from grpo_hpc.config.sections import Rewards
from grpo_hpc.rewards.registry import check_names

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text()
RUN_FILES = re.findall(r"```yaml\n(.*?)```", PAGE[PAGE.index("## Reward models") :], re.DOTALL)


@pytest.mark.parametrize("text", RUN_FILES)
def test_the_run_files_of_the_page(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models" / "my-reward-model"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    rewards = Rewards.model_validate(yaml.safe_load(text)["rewards"])
    check_names(rewards.reward_funcs, rewards.reward_params)


def test_there_are_two():
    assert len(RUN_FILES) == 2
