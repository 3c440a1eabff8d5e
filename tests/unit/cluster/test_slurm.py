"""What calls of Slurm's commands see of the shell; tests/slurm asks a real cluster."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import pytest

from grpo_hpc.cluster import slurm
from grpo_hpc.cluster.detect import detect
from grpo_hpc.cluster.job_states import QueuedJob, ask
from grpo_hpc.cluster.profile import Profile
from grpo_hpc.cluster.slurm import uninfluenced
from grpo_hpc.config import load_run
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.jobs import with_submitit
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.run_dir import RunDir

TOLD = {"SBATCH_PARTITION": "low", "SBATCH_ACCOUNT": "lab", "SBATCH_EXPORT": "NONE", "SLURM_MEM_PER_CPU": "200"}
AROUND = {"SLURM_ARRAY_TASK_ID": "3", "SRUN_EXPORT_ENV": "NONE", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/home/me"}


def test_jobs_are_queued_as_their_profile_says(monkeypatch, capsys) -> None:
    for name, value in (TOLD | AROUND).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with uninfluenced(Profile(partition="gpu").left_open):
        seen = {name for name in TOLD | AROUND if name in os.environ}
    assert seen == {"SBATCH_ACCOUNT", "SLURM_CONF", "HOME"}
    assert dict(os.environ) == before
    assert capsys.readouterr().err.endswith(": SBATCH_EXPORT, SBATCH_PARTITION\n")


def test_what_somebody_likes_to_see_changes_nothing_that_is_read(monkeypatch) -> None:
    """squeue would leave running jobs out, scancel ask whether it may."""
    for name in ("SQUEUE_STATES", "SACCT_FORMAT", "SCANCEL_INTERACTIVE", "SLURM_TIME_FORMAT", "SLURM_CONF"):
        monkeypatch.setenv(name, "PENDING")
    names = {line.partition("=")[0] for line in slurm.call(["env"]).splitlines()}
    assert {name for name in names if name.startswith(("S", "SLURM")) and os.environ[name] == "PENDING"} == {
        "SLURM_CONF"
    }


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``says("squeue", b"...")``: from now on that command prints this, as no Slurm of ours would."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(command: str, out: bytes, code: int = 0, err: str = "") -> None:
        (tmp_path / f"{command}.out").write_bytes(out)
        path = tmp_path / command
        path.write_text(f"#!/bin/sh\n/bin/cat {quote(str(path))}.out\necho {quote(err)} >&2\nexit {code}\n")
        path.chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("out", "number"), [(b"7\n", "7"), (b"7;mars\n", "7"), (b"lua: welcome\n\n 4711 \n", "4711"), (b"8_\n7\n", "7")]
)
def test_the_number_of_a_job_is_found(says, tmp_path: Path, out: bytes, number: str) -> None:
    says("sbatch", out)
    assert slurm.sbatch(tmp_path / "job.sh") == number


@pytest.mark.parametrize("out", [b"", b"\n", b"Submitted\n", b";\n", b"\xff\xfe"])
def test_an_sbatch_that_names_no_job_is_an_error(says, tmp_path: Path, out: bytes) -> None:
    says("sbatch", out)
    with pytest.raises(EnvironmentProblem, match="sbatch has not said which job it queued") as caught:
        slurm.sbatch(tmp_path / "job.sh")
    assert "squeue --me" in caught.value.hint


def test_words_between_the_columns_and_bytes_that_are_no_text(says) -> None:
    says("squeue", b"7|PENDING|a | b|\xff|2026-01-01\n8_1|RUNNING|None|N/A\n")
    says("sacct", b"6|TIMEOUT\n\n6|CANCELLED by 5\nx\n5_[0-2,...|PENDING\n")
    found = ask(["6", "7", "8_1", "5_1"])
    assert found.queued == {"7": QueuedJob("PENDING", "a | b|\ufffd", "2026-01-01"), "8_1": QueuedJob("RUNNING")}
    assert (found.past["6"], found.past["5_1"], found.problem) == (["TIMEOUT", "CANCELLED"], ["PENDING"], "")


@pytest.mark.parametrize("out", [b"7\n", b"welcome\n", b"7|pending\n", b"7|RUNNING|None\n"])
def test_what_cannot_be_read_says_of_no_job_that_it_is_gone(says, out: bytes) -> None:
    says("squeue", out)
    assert "squeue printed what is no list of jobs" in ask(["7"]).problem


@pytest.mark.parametrize("out", [b"", b"PARTITION AVAIL\ngpu up\n", b"gpu|up|x|many|y|z\n", b"\xff|up|1|2|3\n"])
def test_other_columns_of_sinfo_are_no_partitions(says, out: bytes) -> None:
    says("sinfo", out)
    assert "sinfo names no partition that takes jobs" in detect().problem


def test_a_user_without_a_name_is_known_by_a_number(says, monkeypatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    says("sinfo", b"gpu*|up|1:00:00|2|(null)|8\n")
    says("sacctmgr", b"lab\n")
    assert (detect().account, detect().problem) == ("lab", "")


def test_a_controller_that_comes_back_is_waited_for(says, monkeypatch, capsys) -> None:
    monkeypatch.setattr(slurm, "_AGAIN_S", 0.01)
    says("scontrol", b"", 1, "slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(EnvironmentProblem, match="Unable to contact"):
        slurm.patiently(lambda: slurm.state("7"), limit_s=0.1)
    assert "asking again: scontrol refused" in capsys.readouterr().err
    monkeypatch.setattr(time, "sleep", lambda _: says("scontrol", b"JobId=7 JobState=RUNNING"))
    assert slurm.patiently(lambda: slurm.state("7")) == "RUNNING"
    says("scontrol", b"", 1, "slurm_load_jobs error: Invalid job id specified")
    assert slurm.state("7") is None  # forgotten, which is an answer


def test_commands_that_cannot_be_run(says, tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("no program")
    with pytest.raises(EnvironmentProblem, match="scontrol cannot be run: Permission denied"):
        slurm.state("7")


@pytest.mark.parametrize("env", [{"SLURM_JOB_ID": "x", "SLURM_JOB_NODELIST": "n"}, {"SLURM_JOB_ID": "7"}])
def test_a_job_that_is_none(env: dict[str, str]) -> None:
    with pytest.raises(EnvironmentProblem, match="this is no job"):
        slurm.Allocation.here(env)


def test_submitit_without_srun(says, run_dir_of_submitit) -> None:
    with pytest.raises(EnvironmentProblem, match="srun is not installed here"):
        with_submitit.submit(run_dir_of_submitit, Profile(executor="submitit", time_limit="1:00"), [])


@pytest.fixture
def run_dir_of_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    values = {"name": "small", "model": {"path": "m"}, "data": {"train": "t"}, "batch": {"train_iters": 1}}
    values |= {"resources": {"device": "cpu", "nproc_per_node": 1}, "rewards": {"reward_funcs": ["exact_number"]}}
    (tmp_path / "run.yaml").write_text(json.dumps({**values, "model": {"path": "m", "dtype": "float32"}}))
    monkeypatch.chdir(tmp_path)
    cfg = load_run("run.yaml", ["global_batch_size=8"])
    return RunDir.create(cfg, make_plan(cfg))
