from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.jobs.checks.preflight import check_model_folder, preflight


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="nowhere does not exist"):
        check_model_folder(tmp_path / "nowhere")


def test_everything_missing_in_a_model_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EnvironmentProblem) as caught:
        check_model_folder(tmp_path)
    assert "weights (*.safetensors)" in caught.value.message
    assert "tokenizer.json" in caught.value.message
    assert "config.json" not in caught.value.message
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    check_model_folder(tmp_path)


def run_over(folder: Path, train: str, evaluation: str) -> RunConfig:
    """A run of exact_number over rows with these keys beside the prompt."""
    model = folder / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).touch()
    for name, rest in (("train", train), ("eval", evaluation)):
        (folder / f"{name}.jsonl").write_text(f'{{"prompt": "2 + 2"{rest}}}\n{{"prompt": "3 + 3"}}\n')
    data = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")}
    sections = {"model": {"path": str(model)}, "data": data, "rewards": {"reward_funcs": ["exact_number"]}}
    return RunConfig.model_validate({"name": "x", "batch": {"train_iters": 1}, **sections})


def test_rewards_are_checked_against_data_before_queueing(tmp_path: Path) -> None:
    preflight(run_over(tmp_path, ', "answer": 4', ', "answer": 4'), Profile(executor="slurm"))


@pytest.mark.parametrize(
    ("train", "evaluation", "said"),
    [
        (', "anwser": 4', ', "answer": 4', "'exact_number' needs the column 'answer', and no row of .*train.jsonl"),
        (', "answer": 4', "", "'exact_number' needs the column 'answer', and no row of .*eval.jsonl"),
        (', "answer": null', ', "answer": 4', "null in all 2 rows of .*train.jsonl"),
    ],
)
def test_a_column_that_no_row_has_is_refused_before_queueing(
    tmp_path: Path, train: str, evaluation: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        preflight(run_over(tmp_path, train, evaluation), Profile(executor="slurm"))
