"""What is put into a queue is known to its run directory, or not left there; tests/slurm has a real queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.jobs import executors
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.submissions import note_submission, submissions


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where two commands of Slurm write what they were told."""
    for command in ("sbatch", "scancel"):
        (tmp_path / command).write_text(f'#!/bin/sh\necho {command} "$@" >> {tmp_path}/told\necho 4711\n')
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "told"


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_job_that_cannot_be_noted_is_not_left_in_the_queue(queue: Path, tmp_path: Path, monkeypatch, error) -> None:
    run = RunDir(tmp_path)
    note_submission(run, "slurm")

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(executors, "note_jobs", fail)
        executors.queue_one(run, Profile(executor="slurm"))
    assert queue.read_text().splitlines()[1:] == ["scancel 4711"]
    assert executors.queue_one(run, Profile(executor="slurm")) == "4711"
    assert submissions(run)[-1].job_ids == ["4711"]
