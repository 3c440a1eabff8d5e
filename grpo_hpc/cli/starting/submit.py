"""``grpo-hpc submit``."""

from __future__ import annotations

from shlex import join

import click

from grpo_hpc.cli.completion import sweep_keys
from grpo_hpc.cli.starting.queued import queued


@click.command("submit", short_help="Start a run.")
@click.argument("run", metavar="RUN")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Write the run directory and show the script, but start nothing.")
@click.option("--fresh", is_flag=True, help="Move an existing run directory of that name away first.")
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="KEY=VALUE,...",
    shell_complete=sweep_keys,
    help="A run for each of these values, as in --sweep optimizer.lr=1e-6,3e-6; several make all combinations.",
)
def command(run: str, overrides: tuple[str, ...], dry_run: bool, fresh: bool, sweeps: tuple[str, ...]) -> int:
    """Start the run that the file RUN describes, on the cluster that cluster.profile names.

    The profile `local` is this machine: the first Ctrl-C finishes the step, saves and stops; the second kills.

    A sweep is one array job, here one run after the other; `grpo-hpc status output_dir/NAME` compares its runs.
    """
    if sweeps:
        from grpo_hpc.cli.starting.sweeping import submit_sweep

        return submit_sweep(run, overrides, sweeps, dry_run, fresh)
    from rich.console import Console

    from grpo_hpc.cli.planned_site import site_of
    from grpo_hpc.cluster.profile import profile_of
    from grpo_hpc.config import load_run
    from grpo_hpc.jobs.checks.preflight import preflight
    from grpo_hpc.jobs.executors import start
    from grpo_hpc.jobs.prepare import create_run
    from grpo_hpc.plan.make import make_plan
    from grpo_hpc.plan.show_plan import show_plan
    from grpo_hpc.runs.clearing.prepared import discard_prepared, only_prepared
    from grpo_hpc.runs.run_dir import RunDir, short_path
    from grpo_hpc.runs.start_lock import move_away, require_idle

    cfg = load_run(run, overrides)
    profile = profile_of(cfg)
    plan = make_plan(cfg, site=site_of(cfg, profile))
    old = RunDir.of(cfg)
    anew = not fresh and only_prepared(old)
    old.require_free(fresh or anew)
    if old.run_file.is_file():
        require_idle([old])
    if not dry_run:
        preflight(cfg, profile)
    show_plan(plan, Console())
    run_dir = create_run(plan.run, plan, move_away if fresh else discard_prepared if anew else None)
    if anew:
        click.echo(f"{short_path(run_dir.path)} was prepared and never started: it has been made anew.")
    if dry_run:
        click.echo(f"Run directory: {run_dir.path}\nScript:        {run_dir.job_script}\n")
        click.echo(run_dir.job_script.read_text(), nl=False)
        click.echo(f"\nNothing was started. Start it with: grpo-hpc submit {join([run, *overrides])}")
        return 0
    code = start(run_dir)
    if profile.executor != "local":
        click.echo(f"{queued(run_dir)}\nRun directory: {run_dir.path}")
    return code
