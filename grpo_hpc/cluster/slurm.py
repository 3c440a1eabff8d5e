"""The few Slurm commands that are needed, each as one function. Every call has a deadline: slurmctld can be slow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from grpo_hpc.errors import EnvironmentProblem

Answer = TypeVar("Answer")
PATIENCE_S = 600.0
"""How long a controller that does not answer, such as one that is restarted, is asked again."""
_AGAIN_S = 5.0
_DEADLINE_S = 60
_ACCOUNTED_S = 2  # less than Slurm waits between TERM and KILL
_POLL_S = 0.2
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}  # where Slurm is, and who asks
# what people like to see and to be asked, such as SQUEUE_STATES and SCANCEL_INTERACTIVE
_TASTES = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT")
ALIVE = ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "CONFIGURING")


@dataclass(frozen=True)
class Allocation:
    """The job that this process runs in.

    Attributes:
        job_id: its number, for a task of an array ``ARRAY_TASK``.
    """

    job_id: str
    restart: int
    nodes: list[str]

    @property
    def number(self) -> int:
        """A number that hardly another job has."""
        return int(self.job_id.replace("_", ""))

    @classmethod
    def here(cls, env: Mapping[str, str] = os.environ) -> Allocation | None:
        """The allocation that the environment describes; None outside of one."""
        if "SLURM_JOB_ID" not in env:
            return None
        job_id = env["SLURM_JOB_ID"]
        if not re.fullmatch(r"\d+", job_id) or not env.get("SLURM_JOB_NODELIST"):
            raise EnvironmentProblem("SLURM_JOB_ID or SLURM_JOB_NODELIST is not what Slurm sets: this is no job")
        names = call(["scontrol", "show", "hostnames", env["SLURM_JOB_NODELIST"]]).split()
        if "SLURM_ARRAY_JOB_ID" in env:  # the number of an array's last task is that of the whole array
            job_id = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
        return cls(job_id, int(env.get("SLURM_RESTART_COUNT") or 0), names)


def call(command: Sequence[str], cwd: Path | None = None) -> str:
    """What a Slurm command prints; bytes that are no UTF-8 are replaced.

    Raises:
        EnvironmentProblem: it is missing, cannot be run, fails or takes too long; with what it said.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(_TASTES)}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_DEADLINE_S,
            check=False,
        )
    except FileNotFoundError:
        raise EnvironmentProblem(
            f"{command[0]} is not installed here", "Submit from a login node, or use cluster.executor=local."
        ) from None
    except OSError as error:
        raise EnvironmentProblem(f"{command[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(f"{command[0]} has not answered for {_DEADLINE_S} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EnvironmentProblem(f"{command[0]} refused: {said}")
    return done.stdout.strip()


def sbatch(script: Path, *options: str, left_open: Collection[str] = ()) -> str:
    """Queue ``script`` from its own folder and return the number of the job.

    Args:
        left_open: as in :func:`uninfluenced`.

    Raises:
        EnvironmentProblem: sbatch refused, or does not say which job it has queued.
    """
    with uninfluenced(left_open):
        said = call(["sbatch", "--parsable", *options, script.name], cwd=script.parent)
    for line in reversed(said.splitlines()):  # a site's own sbatch may say more before
        if found := re.fullmatch(r"(\d+)(;\S+)?", line.strip()):
            return found[1]
    raise EnvironmentProblem(
        f"sbatch has not said which job it queued; it printed '{said[:200]}'",
        "Look with `squeue --me`. If the job is there, end it with scancel before you try again.",
    )


@contextmanager
def uninfluenced(left_open: Collection[str]) -> Iterator[None]:
    """Jobs that are queued here are what their script says, and nothing of an allocation around them is in their way.

    sbatch obeys ``SBATCH_*`` before its script. ``SLURM_*`` of an allocation reaches the job with the rest of the
    environment, where srun takes it for its own options, and a job that a task of an array queues for such a task.

    Args:
        left_open: keys of the profile that say nothing, such as ``account``: there ``SBATCH_ACCOUNT`` counts.
    """
    counts = {f"SBATCH_{key.upper()}" for key in left_open}
    removed = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SBATCH_", "SRUN_")) and name not in counts | _KEPT
    }
    if unheard := sorted(name for name in removed if name.startswith("SBATCH_")):
        print(f"not passed to sbatch, as the profile says what jobs ask for: {', '.join(unheard)}", file=sys.stderr)
    try:
        yield
    finally:
        os.environ.update(removed)


def requeue(job_id: str) -> None:
    """Put a running job back into the queue; Slurm ends what still runs of it."""
    call(["scontrol", "requeue", job_id])


def patiently(ask: Callable[[], Answer], limit_s: float = PATIENCE_S) -> Answer:
    """What ``ask`` returns, which is called again while it raises that Slurm does not answer.

    Raises:
        EnvironmentProblem: as the last call, after ``limit_s`` seconds.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return ask()
        except EnvironmentProblem as problem:
            if time.monotonic() > deadline:
                raise
            with suppress(OSError):  # a full disk
                print(f"asking again: {problem.message}", file=sys.stderr, flush=True)
            time.sleep(_AGAIN_S)


def state(job_id: str) -> str | None:
    """State of a job while Slurm's controller knows it, such as RUNNING; None afterwards.

    Raises:
        EnvironmentProblem: the controller does not answer.
    """
    return _fields(job_id).get("JobState")


def ending(allocation: Allocation) -> str | None:
    """Slurm's word for how it ends this job; None while it lets it run, or does not answer.

    Of a job whose processes are being ended ``scontrol`` says COMPLETING, whatever the reason is. A requeued one counts
    one restart more, a preempted one has the time of that. The reason of any other is in the accounting within a
    second; where there is none, a person has cancelled it: the time limit announces itself by a signal before.
    """
    try:
        job = _fields(allocation.job_id)
    except EnvironmentProblem:
        return None
    state = job.get("JobState")
    if state is None or state in ALIVE:
        return None
    if int(job.get("Restarts", 0)) > allocation.restart:
        return "REQUEUED"
    if job.get("PreemptTime", "None") != "None":
        return "PREEMPTED"
    return _accounted(allocation) if state == "COMPLETING" else state


def _accounted(allocation: Allocation) -> str:
    """How this start of the job ended, in the accounting's word; CANCELLED when it does not say so in time."""
    deadline = time.monotonic() + _ACCOUNTED_S
    while time.monotonic() < deadline:
        found = past_states(allocation.job_id)[allocation.restart :][:1]
        if found and found[0] not in (*ALIVE, "PENDING", "COMPLETING"):
            return found[0]
        time.sleep(_POLL_S)
    return "CANCELLED"


def _fields(job_id: str) -> dict[str, str]:
    """What the controller shows of a job; empty when it has forgotten it."""
    try:
        shown = call(["scontrol", "show", "job", "-o", job_id])
    except EnvironmentProblem as error:
        if "Invalid job id" in error.message:
            return {}
        raise
    return dict(word.partition("=")[::2] for word in shown.split())


def ended_as(job_id: str) -> str | None:
    """How a job ended that is over: the controller knows it at once, the accounting for longer; None without either.

    Raises:
        EnvironmentProblem: the controller does not answer.
    """
    return state(job_id) or next(reversed(past_states(job_id)), None)


def past_states(job_id: str) -> list[str]:
    """States of all starts of a job, the first start first, from the accounting; empty where there is none."""
    try:
        shown = call(["sacct", "-D", "-X", "-n", "-P", "-j", job_id, "-o", "State"])
    except EnvironmentProblem:
        return []
    return [line.split()[0] for line in shown.splitlines() if line.split()]
