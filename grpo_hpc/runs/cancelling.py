"""Ending runs for good: what waits is taken out of the queue, what runs saves if it can, and nothing starts again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence

from grpo_hpc.cluster import slurm
from grpo_hpc.cluster.job_states import ask
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.files import write_atomically
from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.ends import unsaved
from grpo_hpc.runs.holder import Holder, launcher_of
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import LIVE, Records, standings
from grpo_hpc.runs.start_lock import locked
from grpo_hpc.runs.submissions import submissions

SAVE_S = 30.0
"""How long a local run may take to finish its step and save; Slurm's own limit is its KillWait."""
_GONE_S = 120.0
_POLL_S = 0.3


def cancel(run_dirs: Sequence[RunDir], save_s: float = SAVE_S) -> list[RunDir]:
    """End all that waits or runs of ``run_dirs`` and return when it is gone, or after two minutes.

    What somebody else is just starting is waited for, and cancelled then.

    The wish is written into each run directory first, so that no supervisor requeues what it sees end. What is over
    already is left alone.

    Returns:
        the runs that were not over.

    Raises:
        EnvironmentProblem: Slurm refused, or does not answer.
    """
    with locked(run_dirs):
        live, queued = _tell(run_dirs)
    launchers = [launcher for run_dir in live if (launcher := _launcher(run_dir))]
    _end_launchers(launchers, save_s)
    _wait(lambda: not ask(queued).queued)
    for run_dir in live:
        _close_records(run_dir)
    return live


def _tell(run_dirs: Sequence[RunDir]) -> tuple[list[RunDir], list[str]]:
    """Tell all that waits or runs to end: these runs, and the jobs that Slurm still had."""
    found = standings([Records.read(run_dir) for run_dir in run_dirs])
    live = [run_dir for run_dir, facts in zip(run_dirs, found, strict=True) if facts.state in LIVE]
    jobs = {run_dir: [i for entry in submissions(run_dir) for i in entry.job_ids] for run_dir in run_dirs}
    known = ask(job_id for ids in jobs.values() for job_id in ids)
    if known.problem and live:
        raise EnvironmentProblem(f"nothing was cancelled: {known.problem}", "Cancel where Slurm's commands work.")
    for run_dir in live:
        write_atomically(run_dir.stop, "cancelled")
    if known.queued:  # also what is left of a chain whose run is over
        slurm.call(["scancel", *known.queued])
    return live, list(known.queued)


def _launcher(run_dir: RunDir) -> Holder | None:
    running = [attempt for attempt in history(run_dir) if attempt.state == "running"]
    return launcher_of(running[-1].folder(run_dir)) if running and running[-1].executor == "local" else None


def _end_launchers(launchers: Sequence[Holder], save_s: float) -> None:
    """Ask launchers of this machine to save and stop; those that take too long are told to kill."""
    for limit in (save_s, _GONE_S):
        for launcher in launchers:
            launcher.signal(signal.SIGTERM)
        _wait(lambda: not any(launcher.alive() for launcher in launchers), limit)


def _wait(condition: Callable[[], bool], limit_s: float = _GONE_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _close_records(run_dir: RunDir) -> None:
    """Record the end of attempts that were killed before they could do it themselves."""
    if standings([Records.read(run_dir)])[0].state in LIVE:
        return
    for attempt in history(run_dir):
        if attempt.state == "running":
            attempt.end(run_dir, "cancelled", f"cancelled on request; {unsaved(run_dir)}", None)
