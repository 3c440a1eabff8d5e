"""What the shell offers, asked as bash asks."""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = {
    "grpo-hpc sta": ["status"],
    "grpo-hpc status ": ["runs/one", "runs/two"],
    "grpo-hpc logs runs/t": ["runs/two"],
    "grpo-hpc cancel runs/one": ["runs/one"],
    "grpo-hpc list ": ["runs"],
    "grpo-hpc logs --fo": ["--follow"],
    "grpo-hpc submit run.yaml --sweep optimizer.l": ["optimizer.lr=", "optimizer.lr_"],
    "grpo-hpc cluster add x --executor s": ["slurm", "submitit"],
    "grpo-hpc cluster add x --gpus": ["--gpus-per-node"],
}


@pytest.mark.parametrize("line", CASES)
def test_completion(line: str, tmp_path: Path, monkeypatch, capsys, cli) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/one", "runs/two"):
        (tmp_path / name / "attempt_1").mkdir(parents=True)
        (tmp_path / name / "run.yaml").touch()
    monkeypatch.setenv("_GRPO_HPC_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    assert cli() == 0
    offered = [text.removeprefix("plain,") for text in capsys.readouterr().out.split()]
    assert [text for text in offered if text.startswith(tuple(CASES[line]))] == offered
    assert {text for text in CASES[line] if any(found.startswith(text) for found in offered)} == set(CASES[line])
