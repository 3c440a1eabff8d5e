"""What to say about jobs that were put into a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_hpc.runs.run_dir import RunDir


def queued(run_dir: RunDir) -> str:
    """One line with the numbers of the jobs that were queued last."""
    from grpo_hpc.runs.submissions import submissions

    last = submissions(run_dir)[-1]
    jobs = "job" if len(last.job_ids) == 1 else "jobs, each after the one before,"
    return f"Queued {jobs} {', '.join(last.job_ids)} with {last.executor}."
