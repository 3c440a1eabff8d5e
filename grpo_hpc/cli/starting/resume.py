"""``grpo-hpc resume``."""

from __future__ import annotations

import click

from grpo_hpc.cli.completion import run_dirs
from grpo_hpc.cli.starting.queued import queued
from grpo_hpc.cli.starting.sweeping import resume_sweep


@click.command("resume", short_help="Continue a stopped or crashed run.")
@click.argument("run_dir", metavar="RUN_DIR", shell_complete=run_dirs)
@click.option("--profile", "name", metavar="NAME", help="Continue on another cluster, or on a changed profile.")
def command(run_dir: str, name: str | None) -> int:
    """Continue the run in RUN_DIR from its newest checkpoint, with the run file that was resolved when it began.

    For the folder of a sweep: continue those of its runs that neither wait, run, nor are finished.
    """
    from grpo_hpc.cluster.profile import named_profile, require_complete
    from grpo_hpc.jobs.checks.preflight import preflight
    from grpo_hpc.jobs.executors import start
    from grpo_hpc.jobs.prepare import stored_profile
    from grpo_hpc.runs.run_dir import RunDir
    from grpo_hpc.runs.start_lock import require_idle
    from grpo_hpc.runs.sweep import Sweep

    if sweep := Sweep.at(run_dir):
        if name:
            raise click.UsageError("--profile moves one run; name a run of the sweep")
        return resume_sweep(sweep)
    run = RunDir.open(run_dir)
    require_idle([run])
    cfg = run.config()
    profile = named_profile(name) if name else stored_profile(run)
    require_complete(cfg, profile)
    preflight(cfg, profile)
    code = start(run, move_to=profile if name else None)
    if profile.executor != "local":
        click.echo(queued(run))
    return code
