"""``grpo-hpc submit``."""

from __future__ import annotations

import click


@click.command("submit", short_help="Start a run.")
@click.argument("run", metavar="RUN")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Show the plan and the command line; write and start nothing.")
@click.option("--fresh", is_flag=True, help="Move an existing run directory of that name away first.")
def command(run: str, overrides: tuple[str, ...], dry_run: bool, fresh: bool) -> int:
    """Start the run that the file RUN describes, on this machine.

    The first Ctrl-C finishes the step, saves and stops; the second kills.
    """
    from rich.console import Console

    from grpo_hpc.config import load_run
    from grpo_hpc.config.support import require_trainable
    from grpo_hpc.jobs.local import require_one_node, run_local, shown_command
    from grpo_hpc.jobs.preflight import preflight
    from grpo_hpc.jobs.run_dir import RunDir
    from grpo_hpc.plan.make import make_plan
    from grpo_hpc.plan.show import show_plan

    cfg = load_run(run, overrides)
    require_trainable(cfg)
    require_one_node(cfg)
    plan = make_plan(cfg)
    run_dir = RunDir.of(cfg)
    run_dir.require_free(fresh)
    if not dry_run:
        preflight(cfg)
    show_plan(plan, Console())
    if dry_run:
        click.echo(f"Run directory: {run_dir.path}")
        click.echo(f"Command:       {shown_command(cfg, run_dir.path)}")
        return 0
    return run_local(RunDir.create(cfg, plan, fresh))
