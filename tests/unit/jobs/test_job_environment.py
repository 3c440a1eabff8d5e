"""What of a job's environment is written down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from grpo_hpc import redaction
from grpo_hpc.cluster.profile import Profile
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.jobs.job_environment import job_environment, record_environment

SHELL = {
    "SLURM_JWT": "hush-1",
    "DB_PWD": "hush-2",
    "GH_PAT": "hush-3",
    "KRB_PASSPHRASE": "hush-4",
    "DSN": "hush-5",
    "SESSION_COOKIE": "hush-6",
    "http_proxy": "http://me:hush-7@proxy",
    "VLLM_API_KEY": "hush-8",
    "MINE": "hush-9",
    "NCCL_DEBUG": "WARN",
    "CUDA_HOME": "/cuda",
    "SLURM_JOB_ID": "7",
    "NCCL_NET": "http://me:hush-10@host/",
    "NOT_WANTED": "x",
    "HANDED": "hush-11 ",
    "PYTHONPATH": "/a/hush-12345/b",
}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(redaction, "_kept", set())
    for name in [name for name in os.environ if name != "PATH"]:
        monkeypatch.delenv(name)
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)

    def make(script: str, profile: Profile) -> Path:
        (tmp_path / "job.sh").write_text(script)
        record_environment(tmp_path / "job.sh", profile, tmp_path, job_environment(profile, 3))
        return tmp_path / "environment.json"

    return make


def test_wanted_names_alone_and_no_secret(recorded, tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("WORD=hush-12345\n")
    (tmp_path / "secrets").chmod(0o600)
    profile = Profile(secrets=str(tmp_path / "secrets"), inherit=["HANDED"], environment={"OWN": "value"})
    path = recorded("export OWN=value\nenv --null", profile)
    text, found = path.read_text(), json.loads(path.read_text())
    assert "hush" not in text and "hush" not in str(found)
    assert path.stat().st_mode & 0o777 == 0o600
    assert found.keys() <= {"PATH", "NCCL_DEBUG", "CUDA_HOME", "SLURM_JOB_ID", "NCCL_NET", "VLLM_API_KEY", "WORD"} | {
        *("OWN", "GRPO_HPC_ATTEMPT", "HANDED", "PYTHONPATH")
    }
    assert found["NCCL_DEBUG"] == "WARN" and found["OWN"] == "value" and found["GRPO_HPC_ATTEMPT"] == "3"
    assert found["WORD"] == found["HANDED"] == found["VLLM_API_KEY"] == "(secret)"
    assert found["PYTHONPATH"] == "/a/(secret)/b"


def test_what_a_script_says_of_a_secret_is_not_shown(recorded) -> None:
    with pytest.raises(EnvironmentProblem, match=r"cannot be set: no module at \(secret\) /x"):
        recorded('echo "no module at $HANDED/x" >&2; exit 1', Profile(inherit=["HANDED"]))
