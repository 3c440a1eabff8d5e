"""``grpo-hpc plan``."""

from __future__ import annotations

import click


@click.command("plan", short_help="Show ranks, batch sizes and memory of a run.")
@click.argument("run", metavar="RUN")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(run: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what the run file RUN would do: who does what, batch sizes, rough memory. Starts nothing."""
    from grpo_hpc.config import load_run
    from grpo_hpc.plan.make import make_plan

    plan = make_plan(load_run(run, overrides))
    if as_json:
        import json

        click.echo(json.dumps(plan.to_dict(), indent=2))
        return
    from rich.console import Console

    from grpo_hpc.plan.show import show_plan

    show_plan(plan, Console())
