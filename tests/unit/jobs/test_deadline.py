"""How long a supervisor waits for steps that were told to stop."""

from __future__ import annotations

import pytest

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.jobs import deadline


@pytest.mark.parametrize(
    ("left", "kill_wait", "seconds"),
    [
        ("5:00", "30 sec", 270),
        ("0:20", "30 sec", 10),  # less is left than Slurm waits: never more than half of it is kept back
        ("1-02:03:04", "60 sec", 93_724),
        ("UNLIMITED", "30 sec", float("inf")),
        ("", "30 sec", 20),  # the job is being ended
        ("", "4 sec", 2),
        (None, "30 sec", 90),  # Slurm does not answer
    ],
)
def test_steps_are_ended_before_slurm_ends_the_supervisor(monkeypatch, left, kill_wait, seconds):
    def answers(command):
        if command[0] == "scontrol":
            return f"KillOnBadExit           = 0\nKillWait                = {kill_wait}\n"
        if left is None:
            raise EnvironmentProblem("squeue has not answered for 60 s")
        return left

    monkeypatch.setattr(deadline.slurm, "call", answers)
    assert deadline.patience_s("7", 120) == seconds
