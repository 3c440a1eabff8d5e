"""What Slurm knows of jobs at this moment: one question for all of them, so that a table of runs costs no more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from grpo_hpc.cluster import slurm
from grpo_hpc.errors import EnvironmentProblem

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})


@dataclass(frozen=True)
class QueuedJob:
    """A job that is not over.

    Attributes:
        state: Slurm's word for it, such as PENDING or RUNNING.
        reason: why it waits, in Slurm's word; empty while it runs.
        start: expected start of a waiting job as Slurm prints it; empty when it does not know.
    """

    state: str
    reason: str = ""
    start: str = ""

    @property
    def waits(self) -> bool:
        """It has no nodes yet."""
        return self.state in WAITING


@dataclass(frozen=True)
class JobStates:
    """The answer.

    Attributes:
        queued: jobs that wait or run, by number.
        past: states of every start of the other jobs, the first start first; empty where there is no accounting.
        problem: why Slurm could not be asked; empty when it could.
    """

    queued: dict[str, QueuedJob] = field(default_factory=dict)
    past: dict[str, list[str]] = field(default_factory=dict)
    problem: str = ""


def ask(job_ids: Iterable[str]) -> JobStates:
    """What Slurm knows of ``job_ids``; a Slurm that does not answer is part of the answer."""
    wanted = list(dict.fromkeys(job_ids))
    if not wanted:
        return JobStates()
    try:
        queued = _queued(wanted)
    except EnvironmentProblem as error:
        return JobStates(problem=error.message)
    return JobStates(queued, _past([job_id for job_id in wanted if job_id not in queued]))


_LINE = re.compile(r"([^|]+)\|([A-Z_]+)\|(.*)\|([^|]*)")  # a reason may hold the mark that parts the columns


def _queued(job_ids: Sequence[str]) -> dict[str, QueuedJob]:
    try:
        shown = slurm.call(["squeue", "-h", "-r", "-o", "%i|%T|%r|%S", "-j", ",".join(job_ids)])
    except EnvironmentProblem as error:
        if "Invalid job id" in error.message:  # that it has forgotten them all is an answer
            return {}
        raise
    found = {}
    for line in filter(None, shown.splitlines()):
        parts = _LINE.fullmatch(line)
        if parts is None:  # which job it is about is not known, so none of them can be said to be gone
            raise EnvironmentProblem(f"squeue printed what is no list of jobs: '{line[:200]}'")
        job_id, state, reason, start = parts.groups()
        job = QueuedJob(state)
        if job.waits:
            job = QueuedJob(state, "" if reason == "None" else reason, "" if start == "N/A" else start)
        found[job_id] = job
    return found


def _past(job_ids: Sequence[str]) -> dict[str, list[str]]:
    if not job_ids:
        return {}
    whole = sorted({job_id.partition("_")[0] for job_id in job_ids})  # a task that never began has no record of its own
    try:
        shown = slurm.call(["sacct", "-D", "-X", "-n", "-P", "-j", ",".join(whole), "-o", "JobID,State"])
    except EnvironmentProblem:
        return {}
    found: dict[str, list[str]] = {}
    for line in shown.splitlines():
        jobs, _, state = line.partition("|")
        for job_id in tasks(jobs):
            found.setdefault(job_id, []).extend(state.split()[:1])
    return found


def tasks(jobs: str) -> list[str]:
    """Numbers of jobs: ``7_[0-2,5%2]``, which is how Slurm names tasks that never began, is 7_0, 7_1, 7_2 and 7_5."""
    array, bracket, indices = jobs.partition("_[")
    if not bracket:
        return [jobs]
    found: list[str] = []
    for part in indices.partition("]")[0].partition("%")[0].split(","):
        if bounds := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):  # else it was cut off, as a long list is
            first, last, step = (int(number) if number else None for number in bounds.groups())
            found += [f"{array}_{index}" for index in range(first or 0, (last or first or 0) + 1, step or 1)]
    return found
