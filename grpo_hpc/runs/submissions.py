"""``job.json``: every time that a run was handed to an executor."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass

from grpo_hpc.files import write_atomically
from grpo_hpc.runs.records import read_record
from grpo_hpc.runs.run_dir import RunDir


@dataclass(frozen=True)
class Submission:
    """One call of ``submit`` or ``resume``.

    Attributes:
        number: counts from 1.
        executor: who starts the processes.
        job_ids: Slurm's numbers of the jobs, in the order in which they will run; empty on this machine.
        at: seconds since the epoch.
    """

    number: int
    executor: str
    job_ids: list[str]
    at: float


@dataclass(frozen=True)
class _Submissions:
    submissions: list[Submission]


def submissions(run_dir: RunDir) -> list[Submission]:
    """Every submission so far, the oldest first.

    Raises:
        ConfigError: the record is damaged; without it nobody knows whether the run waits somewhere.
    """
    if not os.path.lexists(run_dir.job_file):
        return []
    return read_record(run_dir.job_file, _Submissions).submissions


def note_submission(run_dir: RunDir, executor: str) -> Submission:
    """Begin a submission; its jobs are added by :func:`note_jobs` as they get their numbers."""
    so_far = submissions(run_dir)
    submission = Submission(len(so_far) + 1, executor, [], time.time())
    _write(run_dir, [*so_far, submission])
    return submission


def note_jobs(run_dir: RunDir, *job_ids: str) -> None:
    """Add jobs to the latest submission."""
    *earlier, latest = submissions(run_dir)
    latest.job_ids.extend(job_ids)
    _write(run_dir, [*earlier, latest])


def _write(run_dir: RunDir, entries: list[Submission]) -> None:
    text = json.dumps({"submissions": [asdict(entry) for entry in entries]}, indent=2)
    write_atomically(run_dir.job_file, text + "\n")
