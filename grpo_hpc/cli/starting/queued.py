"""What to say about jobs that were put into a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_hpc.runs.run_dir import RunDir


def queued(run_dir: RunDir) -> str:
    """The numbers of the jobs that were queued last, and how to follow them."""
    from shlex import quote

    from grpo_hpc.runs.run_dir import short_path
    from grpo_hpc.runs.submissions import submissions

    last = submissions(run_dir)[-1]
    jobs = "job" if len(last.job_ids) == 1 else "jobs, each after the one before,"
    path = quote(short_path(run_dir.path))
    follow = f"Look at it: grpo-hpc status {path}; follow it: grpo-hpc logs -f {path}"
    return f"Queued {jobs} {', '.join(last.job_ids)} with {last.executor}.\n{follow}"
