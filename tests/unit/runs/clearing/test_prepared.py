"""`submit` where an earlier `submit --dry-run` has made the run directory."""

from __future__ import annotations

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.errors import ConfigError
from grpo_hpc.runs.clearing.prepared import discard_prepared, only_prepared
from grpo_hpc.runs.run_dir import RunDir


@pytest.fixture
def prepared(cli, tmp_path, monkeypatch, capsys) -> RunDir:
    monkeypatch.chdir(tmp_path)
    assert cli("config", "copy", "quickstart", "first.yaml") == 0
    assert cli("submit", "first.yaml", "--dry-run", "name=first") == 0
    assert "Start it with: grpo-hpc submit first.yaml name=first\n" in capsys.readouterr().out
    return RunDir.open("runs/first")


def test_an_edited_run_file_makes_the_directory_anew(prepared, cli, tmp_path, capsys):
    file = tmp_path / "first.yaml"
    file.write_text(file.read_text().replace("train_iters: 20", "train_iters: 7"))
    assert cli("submit", "first.yaml", "--dry-run", "name=first") == 0
    assert "runs/first was prepared and never started: it has been made anew." in capsys.readouterr().out
    assert load_run(prepared.run_file).batch.train_iters == 7
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first"]


@pytest.mark.parametrize("more", ["attempt_1", "job.json", "notes.txt"])
def test_what_was_started_or_holds_more_is_kept(prepared, cli, capsys, more):
    (prepared.path / more).touch()
    assert cli("submit", "first.yaml", "--dry-run", "name=first") == 2
    assert "grpo-hpc resume runs/first" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        discard_prepared(prepared)
    assert (prepared.path / more).exists()


def test_a_run_file_that_was_edited_in_its_directory_is_kept(prepared, cli):
    prepared.run_file.write_text(prepared.run_file.read_text().replace("seed: 42", "seed: 7"))
    assert not only_prepared(prepared)
    assert cli("submit", "first.yaml", "--dry-run", "name=first") == 2
    assert cli("submit", "first.yaml", "--dry-run", "name=first", "--fresh") == 0


def test_a_folder_that_is_no_run_is_kept(prepared):
    prepared.run_file.unlink()
    assert not only_prepared(prepared) and not only_prepared(RunDir("nowhere"))
