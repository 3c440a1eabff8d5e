"""How long a supervisor waits for steps that were told to stop: a little less than Slurm waits for the supervisor."""

from __future__ import annotations

import re

from grpo_hpc.cluster import slurm
from grpo_hpc.config.patterns import wall_seconds
from grpo_hpc.errors import EnvironmentProblem

_KILL_WAIT_S = 30.0  # Slurm's default
_RECORD_S = 10.0  # for ending what is left of a step, and for writing down how it ended


def patience_s(job_id: str, save_before_s: float) -> float:
    """Seconds until steps must be ended, so that their end can be recorded and the job be queued again.

    That is until the job's time limit, less the time that Slurm leaves to processes between TERM and KILL. Where Slurm
    ends the job already, it is what is left of that time.

    Args:
        save_before_s: how long before the limit the warning comes, for when Slurm does not answer.
    """
    wait = _kill_wait_s()
    try:
        # only of a job that runs: one that is being ended shows its old limit
        left = slurm.call(["squeue", "-h", "-t", "RUNNING", "-o", "%L", "-j", job_id])
    except EnvironmentProblem:
        return _before(save_before_s, wait)
    if not left:
        return _before(wait, _RECORD_S)
    return _before(wall_seconds(left), wait) if re.fullmatch(r"[-\d:]+", left) else float("inf")  # UNLIMITED


def _before(seconds: float, reserve: float) -> float:
    """``seconds`` less ``reserve``, which never takes more than half of them."""
    return max(seconds - reserve, seconds / 2)


def _kill_wait_s() -> float:
    """Seconds that Slurm leaves to processes between TERM and KILL."""
    try:
        found = re.search(r"^KillWait\s*=\s*(\d+)", slurm.call(["scontrol", "show", "config"]), re.MULTILINE)
    except EnvironmentProblem:
        found = None
    return float(found[1]) if found else _KILL_WAIT_S
