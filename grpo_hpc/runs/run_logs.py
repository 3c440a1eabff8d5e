"""Which of a run's many log files to read."""

from __future__ import annotations

import re
from pathlib import Path

from grpo_hpc.errors import ConfigError
from grpo_hpc.runs.attempts import Attempt, history
from grpo_hpc.runs.crash import find_crash
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.submissions import submissions


def main_log(run_dir: RunDir, attempt: Attempt | None) -> Path | None:
    """The log that tells most about a start: that of the rank that failed first, else that of rank 0.

    Before rank 0 writes it is the launcher's, before that the check of the nodes', before that Slurm's.

    Args:
        attempt: None for a run that was never started.
    """
    if attempt is None:
        return _slurm_log(run_dir, [job_id for entry in submissions(run_dir) for job_id in entry.job_ids])
    folder = attempt.folder(run_dir)
    if attempt.state in ("crash", "out_of_memory"):
        found = find_crash(RunDir.launcher_log(folder), rank_logs(folder)).log
        if _has_text(found):
            return found
    usual = (RunDir.rank_log(folder, 0), RunDir.launcher_log(folder), folder / "check.log")
    return next(filter(_has_text, usual), None) or _slurm_log(run_dir, [attempt.job_id] if attempt.job_id else [])


def rank_log(run_dir: RunDir, attempt: Attempt, rank: int) -> Path | None:
    """The log of one rank of a start; None while the start is too young to have it.

    Raises:
        ConfigError: the run has no such rank.
    """
    resources = run_dir.config().resources
    world = resources.nodes * resources.nproc_per_node
    if not 0 <= rank < world:
        raise ConfigError(f"there is no rank {rank}", f"The run has {world} ranks: 0 to {world - 1}.")
    path = RunDir.rank_log(attempt.folder(run_dir), rank)
    return path if path.is_file() else None


def server_log(run_dir: RunDir, attempt: Attempt, server: int) -> Path | None:
    """The log of one vLLM server of a start; None while the start is too young to have it.

    Raises:
        ConfigError: the run has no such server.
    """
    count = len(run_dir.planned_servers())
    if not 0 <= server < count:
        there = f"It has {count}: 0 to {count - 1}." if count else "It samples inside the trainer's own processes."
        raise ConfigError(f"there is no server {server} in this run", there)
    path = RunDir.server_log(attempt.folder(run_dir), server)
    return path if path.is_file() else None


def attempt_of(run_dir: RunDir, number: int | None) -> Attempt | None:
    """A start by its number, or the newest one; None when the run was never started.

    Raises:
        ConfigError: there is no start of that number.
    """
    attempts = history(run_dir)
    if number is None:
        return attempts[-1] if attempts else None
    found = next((attempt for attempt in attempts if attempt.number == number), None)
    if found is None:
        there = f"There are attempts 1 to {attempts[-1].number}." if attempts else "It was never started."
        raise ConfigError(f"{run_dir.path} has no attempt {number}", there)
    return found


def _slurm_log(run_dir: RunDir, job_ids: list[str]) -> Path | None:
    """What sbatch's script itself wrote, which is where a job ends that cannot even begin an attempt."""
    for job_id in reversed(job_ids):
        own = run_dir.path / f"slurm-{job_id}.log"
        of_submitit = [
            path
            for folder in (run_dir.path, run_dir.path.parent)  # beside the run directory for a sweep
            for path in (folder / "submitit").glob(f"{job_id}*_log.err")
        ]
        if found := next(filter(_has_text, (own, *of_submitit)), None):
            return found
    return None


def _has_text(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def rank_logs(attempt: Path) -> list[Path]:
    """The logs of the ranks of a start, in their order; other files with such names are not theirs."""
    logs = [path for path in attempt.glob("rank_*.log") if re.fullmatch(r"rank_[0-9]{1,9}\.log", path.name)]
    return sorted(logs, key=lambda log: int(log.stem.removeprefix("rank_")))
