"""The keys of environments: how one is named, what it asks of a run, and what asks for one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.config.environment_name import file_and_name, is_environment, with_absolute_file
from grpo_hpc.errors import ConfigError
from grpo_hpc.runs.run_dir import with_absolute_paths

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
MAZE = "environment=my/env.py:Maze"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("my_tools.py", ("my_tools.py", "")),
        ("a/b.py:Maze", ("a/b.py", "Maze")),
        ("/a:b/c.py:Maze", ("/a:b/c.py", "Maze")),
        ("a:b.py", ("a:b.py", "")),
    ],
)
def test_a_name_has_a_file_and_perhaps_a_name_in_it(text: str, parts: tuple[str, str]) -> None:
    assert is_environment(text)
    assert file_and_name(text) == parts
    assert file_and_name(with_absolute_file(text, lambda path: f"/x/{path}")) == (f"/x/{parts[0]}", parts[1])


@pytest.mark.parametrize("text", ["maze", "Maze.py:", ".py", ".py:Maze", "a.py:b-c", "a.py:b:c", "a.txt:Maze", ":Maze"])
def test_other_texts_are_refused(text: str) -> None:
    assert not is_environment(text)
    with pytest.raises(ConfigError, match=r"rollout\.environment .* must be path/to/file\.py, for the functions in it"):
        load_run(QUICKSTART, [f"environment='{text}'"])


def test_paths_are_the_same_from_every_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORK", "shared")
    params = "environment_params={map_file: $WORK/m.txt, size: 4, deep: {map_file: m.txt}}"
    cfg = load_run(QUICKSTART, ["environment=$WORK/env.py:Maze", params])
    assert cfg.rollout.environment == "shared/env.py:Maze"
    assert cfg.rollout.environment_params == {"map_file": "shared/m.txt", "size": 4, "deep": {"map_file": "m.txt"}}
    monkeypatch.chdir(tmp_path)
    absolute = with_absolute_paths(cfg)
    assert absolute.rollout.environment == f"{tmp_path}/shared/env.py:Maze"
    assert absolute.inputs[-2:] == [f"{tmp_path}/shared/env.py", f"{tmp_path}/shared/m.txt"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["max_turns=3"], "rollout.max_turns (override): has a meaning only with rollout.environment"),
        (["environment_params={a: 1}"], "rollout.environment_params (override): has a meaning only with"),
        (["tool_parser=hermes"], "rollout.tool_parser (override): has a meaning only with rollout.environment"),
        ([MAZE, "vllm_max_model_len=null"], "needs rollout.vllm_max_model_len: tokens of a whole episode"),
        (["reward_funcs=[environment]"], "names environment, but there is no rollout.environment"),
        (["reward_funcs=[win=environment]"], "names win, but there is no rollout.environment"),
        ([MAZE, "reward_funcs=[environment, win=environment]"], "names what the environment gives twice"),
        (
            [MAZE, "reward_funcs=[environment]", "reward_params={environment: {size: 4}}"],
            "environment is the environment's and has no parameters",
        ),
        (
            [MAZE, "reward_funcs=[environment]", "reward_failure={environment: zero}"],
            "rollout.environment_failure says what becomes of its failures",
        ),
        ([MAZE, "max_turns=0"], "must be at least 1, got 0"),
        ([MAZE, "environment_failure=fail"], "must be drop or zero, got 'fail'"),
        ([MAZE, "completion_length_limit_scope=each"], "must be per_round or total"),
    ],
)
def test_mistakes_are_named(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_run(QUICKSTART, overrides)


def test_what_the_environment_gives_is_a_reward_with_a_weight() -> None:
    overrides = [MAZE, "reward_funcs=[exact_number, won=environment, e.py:environment]", "reward_weights=[1, 0.5, 2]"]
    rewards = load_run(QUICKSTART, overrides).rewards
    assert rewards.columns == ["exact_number", "won", "environment"]
    assert rewards.called == ["exact_number", "e.py:environment"]
    assert rewards.of_environment == ["won"]
