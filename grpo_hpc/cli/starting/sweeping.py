"""``grpo-hpc submit --sweep`` and ``grpo-hpc resume SWEEP_DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from grpo_hpc.runs.sweep import Sweep


def submit_sweep(run: str, overrides: Sequence[str], sweeps: Sequence[str], dry_run: bool, fresh: bool) -> int:
    """Check every point, write the folder of the sweep and start it."""
    from grpo_hpc.cli.planned_site import site_of
    from grpo_hpc.cluster.profile import profile_of
    from grpo_hpc.jobs.array import create_sweep
    from grpo_hpc.jobs.checks.preflight import preflight
    from grpo_hpc.jobs.prepare import TRAINER
    from grpo_hpc.plan.make import make_plan
    from grpo_hpc.runs.run_dir import RunDir
    from grpo_hpc.runs.sweep import for_each, make_points

    points = make_points(run, overrides, sweeps)
    plans = for_each(points, lambda cfg: make_plan(cfg, site=site_of(cfg, profile_of(cfg))))
    points = [replace(point, cfg=plan.run) for point, plan in zip(points, plans, strict=True)]
    RunDir(points[0].cfg.output_dir).require_free(fresh)
    if not dry_run:
        for_each(points, lambda cfg: preflight(cfg, profile_of(cfg)))
    sweep = create_sweep(points, plans, fresh, TRAINER)
    for point in points:
        click.echo(f"{point.cfg.name}  {point}")
    if not dry_run:
        return start(sweep, range(len(points)))
    if sweep.job_script.is_file():
        click.echo(f"\nScript:        {sweep.job_script}\n\n{sweep.job_script.read_text()}")
    click.echo(f"Run directory: {sweep.runs[0].path}, and so on\nScript:        {sweep.runs[0].job_script}\n")
    click.echo(sweep.runs[0].job_script.read_text(), nl=False)
    click.echo(f"\nNothing was started. Start it with: grpo-hpc resume {quote(str(sweep.path))}")
    return 0


def resume_sweep(sweep: Sweep) -> int:
    """Start the points that neither wait, run, nor are finished."""
    from grpo_hpc.jobs.checks.preflight import preflight
    from grpo_hpc.jobs.prepare import stored_profile
    from grpo_hpc.runs.standing import LIVE, Records, standings

    found = standings([Records.read(run) for run in sweep.runs])
    open_points = [index for index, run in enumerate(found) if run.state not in (*LIVE, "success")]
    if not open_points:
        click.echo("Nothing to do: every run of the sweep waits, runs or is finished.")
        return 0
    for run in (sweep.runs[index] for index in open_points):
        preflight(run.config(), stored_profile(run))
    return start(sweep, open_points)


def start(sweep: Sweep, indices: Sequence[int]) -> int:
    """Start some points, and say what was queued."""
    from grpo_hpc.jobs.array import start_sweep
    from grpo_hpc.runs.submissions import submissions

    code = start_sweep(sweep, indices)
    last = submissions(sweep.runs[indices[0]])[-1]
    if last.executor != "local":
        array = last.job_ids[0].partition("_")[0]
        click.echo(f"Queued {len(indices)} runs as the array job {array} with {last.executor}.\nSweep: {sweep.path}")
    return code
