"""``grpo-hpc resume``."""

from __future__ import annotations

import click

from grpo_hpc.cli.completion import run_dirs
from grpo_hpc.cli.starting.queued import queued
from grpo_hpc.cli.starting.sweeping import resume_sweep


@click.command("resume", short_help="Continue a stopped or crashed run.")
@click.argument("run_dir", metavar="RUN_DIR", shell_complete=run_dirs)
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--profile", "name", metavar="NAME", help="Continue on another cluster, or on a changed profile.")
def command(run_dir: str, overrides: tuple[str, ...], name: str | None) -> int:
    """Continue the run in RUN_DIR from its newest checkpoint, with the run file that was resolved when it began.

    KEY=VALUE changes that file first, as in train_iters=800: what a later start can obey (docs/run_file.md says what)
    is obeyed from then on, what it cannot is refused by name. A finished run goes on when it gets more steps.

    For the folder of a sweep: continue those of its runs that neither wait, run, nor are finished.
    """
    from grpo_hpc.cluster.profile import named_profile, require_complete
    from grpo_hpc.config import load_run
    from grpo_hpc.jobs.checks.preflight import preflight
    from grpo_hpc.jobs.executors import start
    from grpo_hpc.jobs.prepare import stored_profile
    from grpo_hpc.plan.make import make_plan
    from grpo_hpc.plan.site import Site
    from grpo_hpc.runs.run_dir import RunDir, with_absolute_paths
    from grpo_hpc.runs.run_file_changes import require_obeyed
    from grpo_hpc.runs.start_lock import require_idle
    from grpo_hpc.runs.sweep import Sweep

    if sweep := Sweep.at(run_dir):
        if name or overrides:
            raise click.UsageError("--profile and KEY=VALUE are for one run; name a run of the sweep")
        return resume_sweep(sweep)
    run = RunDir.open(run_dir)
    require_idle([run])
    cfg = with_absolute_paths(load_run(run.run_file, overrides))
    changed = require_obeyed(run, cfg)
    profile = named_profile(name) if name else stored_profile(run)
    require_complete(cfg, profile)
    plan = make_plan(cfg, site=Site(warned_s=profile.warned_s)) if changed else None
    for warning in plan.warnings if plan else ():
        click.echo(f"Note: {warning}", err=True)
    preflight(cfg, profile)
    code = start(run, profile if name else None, cfg, plan)
    if profile.executor != "local":
        click.echo(queued(run))
    return code
