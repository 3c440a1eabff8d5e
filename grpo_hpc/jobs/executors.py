"""Who starts a prepared run: one function per executor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from grpo_hpc.cluster import slurm
from grpo_hpc.cluster.profile import Executor, Profile
from grpo_hpc.config import RunConfig
from grpo_hpc.config.on_resume import MACHINES
from grpo_hpc.jobs.prepare import move_run, stored_profile
from grpo_hpc.runs.run_dir import PlanLike, RunDir
from grpo_hpc.runs.run_file_changes import accept_changes
from grpo_hpc.runs.start_lock import starting
from grpo_hpc.runs.submissions import Submission, note_jobs, note_submission, submissions


def start(
    run_dir: RunDir, move_to: Profile | None = None, wanted: RunConfig | None = None, plan: PlanLike | None = None
) -> int:
    """Hand the run to its executor; ``local`` returns when the run ends, the others when it is queued.

    Args:
        move_to: the cluster that the run is prepared for anew before.
        wanted: its run file from now on; absent: the one in its directory.
        plan: of that run file, for ``plan.json``; absent: what stands there.

    Raises:
        EnvironmentProblem: the executor refused, or the run waits or runs already.
        ConfigError: the run file has changed, and the run cannot obey it any more.

    Returns:
        the exit code for the command line.
    """
    with starting([run_dir]):
        on_other_machines = tell_changes(run_dir, wanted)
        if move_to or on_other_machines:
            move_run(run_dir, move_to or stored_profile(run_dir))
        if plan:
            run_dir.write_plan(plan)
        profile = stored_profile(run_dir)
        if profile.executor != "local":
            queue(run_dir, profile)
            return 0
        from grpo_hpc.jobs.local import begin_local, watch_local

        attempt = begin_local(run_dir)
    return watch_local(run_dir, attempt)


def tell_changes(run_dir: RunDir, wanted: RunConfig | None = None, alone: bool = True) -> bool:
    """Say what has changed in the run file since the last start; the arguments are those of :func:`accept_changes`.

    Returns:
        whether it asks for other machines, so that the script is not right any more.

    Raises:
        ConfigError: the run cannot obey it any more.
    """
    found = accept_changes(run_dir, wanted, alone)
    for key, (old, new) in found.items():
        with suppress(OSError):  # a full disk
            text = f"changed in {run_dir.run_file.name} since the last start: {key}: {old} -> {new}"
            print(text, file=sys.stderr, flush=True)
    return any(key.rpartition(".")[2] in MACHINES for key in found)


def queue(run_dir: RunDir, profile: Profile) -> Submission:
    """Put the jobs of the next submission into Slurm's queue, and note their numbers in the run directory."""
    note_submission(run_dir, profile.executor)
    run_dir.stop.unlink(missing_ok=True)
    after: list[str] = []
    for _ in range(1 if profile.requeue else profile.chain):
        after = [f"--dependency=afterany:{queue_one(run_dir, profile, after)}"]
    return submissions(run_dir)[-1]


def queue_one(run_dir: RunDir, profile: Profile, options: Sequence[str] = ()) -> str:
    """Put one more job of the latest submission into Slurm's queue and note its number, which is returned.

    A job of which no note can be made is taken out of the queue: nobody would know of it.

    Args:
        options: of sbatch, besides those of the profile, as in ``--exclude=node7``.
    """
    job_id = _QUEUES[profile.executor](run_dir, profile, options)
    try:
        note_jobs(run_dir, job_id)
    except BaseException:
        slurm.call(["scancel", job_id])
        raise
    return job_id


def _sbatch(run_dir: RunDir, profile: Profile, options: Sequence[str]) -> str:
    return slurm.sbatch(run_dir.job_script, *options, left_open=profile.left_open)


def _submitit(run_dir: RunDir, profile: Profile, options: Sequence[str]) -> str:
    from grpo_hpc.jobs.with_submitit import submit

    return submit(run_dir, profile, options)


_QUEUES: dict[Executor, Callable[[RunDir, Profile, Sequence[str]], str]] = {"slurm": _sbatch, "submitit": _submitit}
