"""Variables that Slurm's commands read: of a site with other defaults, and of an allocation around the submission."""

from __future__ import annotations

import json

import pytest
from lightruns import ended, everything, job, wait_for

from grpo_hpc.cluster import slurm
from grpo_hpc.runs.attempts import history

SITE = {"SBATCH_EXPORT": "NONE", "SLURM_EXPORT_ENV": "NONE", "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "low"}
AROUND = {"SLURM_MEM_PER_CPU": "200", "SLURM_GPUS_PER_TASK": "1", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "1"}


@pytest.mark.parametrize("executor", ["slurm", "submitit"])
def test_they_do_not_reach_a_job(submit, monkeypatch, capfd, executor):
    for name, value in (SITE | AROUND).items():
        monkeypatch.setenv(name, value)
    run = submit(run={"executor": executor}, profile={"inherit": ["SECRET"], "gres": "gres"})
    for name in SITE | AROUND:
        monkeypatch.delenv(name)
    assert "jobs ask for: SBATCH_EXPORT, SBATCH_TIMELIMIT\n" in capfd.readouterr().err
    (attempt,) = ended(run, 1)
    assert attempt.state == "success", everything(run)
    shown = slurm.call(["scontrol", "show", "job", "-o", job(run)])
    assert "Partition=low" in shown, "the profile says nothing of it, so the variable counts"
    assert "TimeLimit=00:30:00" in shown


@pytest.mark.parametrize("executor", ["slurm", "submitit"])
def test_a_job_that_begins_without_an_environment_hands_its_own_to_its_steps(submit, executor):
    run = submit(run={"executor": executor}, profile={"options": ["--export=NONE"]})
    (attempt,) = ended(run, 1)
    assert attempt.state == "success", everything(run)
    assert json.loads((attempt.folder(run) / "environment.json").read_text())["PATH"]


def test_what_fails_at_once_and_alike_is_not_tried_four_times(submit):
    run = submit(profile={"python": "/nowhere/python"})
    assert [attempt.state for attempt in ended(run, 2)] == ["crash", "crash"], everything(run)
    wait_for(lambda: slurm.state(job(run)) == "FAILED", "the job to fail")
    assert len(history(run)) == 2 and "/nowhere/python: No such file" in history(run)[1].reason, everything(run)
