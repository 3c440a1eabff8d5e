from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.jobs.checks.preflight import check_model_folder


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
