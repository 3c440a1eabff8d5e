"""A sweep as one array job: its script, which is a pure function, and its ways into the queue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from grpo_hpc.cluster import slurm
from grpo_hpc.cluster.profile import Profile, profile_of
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import ConfigError
from grpo_hpc.jobs.executors import start, tell_changes
from grpo_hpc.jobs.job_script import sbatch_options
from grpo_hpc.jobs.prepare import create_run, make_job, stored_profile
from grpo_hpc.runs.run_dir import PlanLike, RunDir
from grpo_hpc.runs.start_lock import FILE, move_away, starting
from grpo_hpc.runs.submissions import note_jobs, note_submission
from grpo_hpc.runs.sweep import Point, Sweep, write_sweep

_OWN = ("--job-name=", "--output=")


def array_script(points: Sequence[Point]) -> str:
    """The script of the array job: task K runs the script of the K-th run directory.

    Raises:
        ConfigError: the points ask Slurm for different things, so one job cannot hold them.
    """
    asked = [_options(point.cfg) for point in points]
    for point, options in zip(points, asked, strict=True):
        if options != asked[0]:
            ours, theirs = (" ".join(o for o in a if o not in b) for a, b in ((asked[0], options), (options, asked[0])))
            raise ConfigError(
                f"the points of a sweep share one array job, but {points[0]} asks Slurm for '{ours}' and {point} for "
                f"'{theirs}'",
                "Submit them as runs of their own.",
            )
    folder = points[0].cfg.output_dir
    name = Path(folder).name
    options = [f"--job-name={name}", f"--array=0-{len(points) - 1}", *asked[0], f"--output={name}-%a/slurm-%A_%a.log"]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), ""]
    lines += ["# Written by grpo-hpc: every task of this array supervises the run of one point of the sweep."]
    return "\n".join([*lines, f'exec bash {quote(f"{folder}/{name}")}-"$SLURM_ARRAY_TASK_ID"/job.sh', ""])


def create_sweep(points: Sequence[Point], plans: Sequence[PlanLike], fresh: bool, program: tuple[str, ...]) -> Sweep:
    """Make the folder with all run directories; nothing is started.

    Args:
        plans: of the points.
        fresh: move an existing folder of that name away first.
        program: what torchrun starts on every rank.

    Raises:
        ConfigError: the folder is taken, or the points do not fit into one job.
        EnvironmentProblem: it cannot be written, or holds runs that wait or run.
    """
    folder = RunDir(points[0].cfg.output_dir)
    folder.require_free(fresh)
    local = profile_of(points[0].cfg).executor == "local"
    script = None if local else array_script(points)
    folder.make_room(move_sweep_away if fresh else None)
    for point, plan in zip(points, plans, strict=True):
        create_run(point.cfg, plan, program=program)
    if script:
        (folder.path / "job.sh").write_text(script, encoding="utf-8")
    return write_sweep(folder.path, points)


def move_sweep_away(folder: RunDir) -> None:
    """Give the folder of a sweep, or whatever else holds its path, the name of an old one.

    Raises:
        EnvironmentProblem: a run of it waits or runs.
    """
    sweep = Sweep.at(folder.path)
    runs = [run for run in sweep.runs if run.run_file.is_file()] if sweep else []
    if not runs:
        move_away(folder)
        return
    with starting(runs):
        moved = folder.path.rename(folder.old_path())
        for run in runs:
            (moved / run.path.name / FILE).unlink(missing_ok=True)


def start_sweep(sweep: Sweep, indices: Sequence[int]) -> int:
    """Start some points of a sweep: all at once in the queue, one after the other on this machine.

    Returns:
        the exit code for the command line; locally the worst one, and a person who stops a run stops the rest.
    """
    runs = [sweep.runs[index] for index in indices]
    profile = stored_profile(runs[0])
    if profile.executor != "local":
        with starting(runs):
            for run in runs:
                tell_changes(run, alone=False)
            _queue(sweep, list(indices), runs, profile)
        return 0
    from grpo_hpc.runs.attempts import history

    worst = 0
    for run in runs:
        worst = max(worst, start(run))
        if history(run)[-1].state in ("stopped", "cancelled"):
            break
    return worst


def _queue(sweep: Sweep, indices: list[int], runs: list[RunDir], profile: Profile) -> None:
    for run in runs:
        note_submission(run, profile.executor)
        run.stop.unlink(missing_ok=True)
    after: list[str] = []
    for _ in range(1 if profile.requeue else profile.chain):
        if profile.executor == "submitit":
            from grpo_hpc.jobs.with_submitit import submit_array

            jobs = submit_array(runs, sweep.path, profile, after)
        else:
            tasks = f"--array={','.join(map(str, indices))}"
            array = slurm.sbatch(sweep.job_script, tasks, *after, left_open=profile.left_open)
            jobs = [f"{array}_{index}" for index in indices]
        for run, job_id in zip(runs, jobs, strict=True):
            note_jobs(run, job_id)
        after = [f"--dependency=afterany:{jobs[0].partition('_')[0]}"]


def _options(cfg: RunConfig) -> list[str]:
    options = sbatch_options(make_job(cfg, profile_of(cfg)))
    return [option for option in options if not option.startswith(_OWN)]
