"""What calls of Slurm's commands see of the shell; tests/slurm asks a real cluster."""

from __future__ import annotations

import os

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.cluster.slurm import uninfluenced

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
