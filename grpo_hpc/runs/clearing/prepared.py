"""Run directories that were made and never started: nothing in them is worth more than the run file they came from."""

from __future__ import annotations

import shutil
from uuid import uuid4

from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.start_lock import FILE, starting


def only_prepared(run_dir: RunDir) -> bool:
    """Whether a directory holds what ``submit --dry-run`` writes and no more, and nobody has edited its run file."""
    made = {run_dir.run_file, run_dir.started_file, run_dir.plan_file, run_dir.lock_file, run_dir.cluster_file}
    made |= {run_dir.job_script, run_dir.path / FILE}
    if not run_dir.run_file.is_file() or not {*run_dir.path.iterdir()} <= made:
        return False
    started = run_dir.started_file
    return started.is_file() and started.read_bytes() == run_dir.run_file.read_bytes()


def discard_prepared(run_dir: RunDir) -> None:
    """Remove such a directory; one that somebody has started meanwhile stays.

    Raises:
        ConfigError: it is more than prepared.
        EnvironmentProblem: it waits or runs.
    """
    with starting([run_dir]):
        run_dir.require_free(fresh=only_prepared(run_dir))
        gone = run_dir.path.rename(run_dir.path.with_name(f".{run_dir.path.name}.{uuid4().hex[:8]}"))
    shutil.rmtree(gone, ignore_errors=True)
