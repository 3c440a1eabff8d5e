"""``grpo-hpc compare``."""

from __future__ import annotations

import click

from grpo_hpc.cli.completion import run_dirs
from grpo_hpc.observe.jsonl import json_text


@click.command("compare", short_help="Show what differs between runs: file, environment, metrics at equal steps.")
@click.argument("runs", metavar="RUN_DIR RUN_DIR...", nargs=-1, required=True, shell_complete=run_dirs)
@click.option("--step", type=click.IntRange(min=0), help="Compare metrics here. [default: the last step that all made]")
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as JSON.")
def command(runs: tuple[str, ...], step: int | None, as_json: bool) -> None:
    """Show what differs between two runs or more, or between the runs of a sweep.

    Metrics are compared at the newest step that all of them have made, and as means of the last fifth of the steps up
    to it.

    --json prints an object with labels, settings and environment (key and the values of all runs), step, and metrics
    (name, at, mean).
    """
    from grpo_hpc.errors import ConfigError
    from grpo_hpc.report.differences import differences
    from grpo_hpc.report.recorded_run import read_runs
    from grpo_hpc.report.show_differences import show_differences
    from grpo_hpc.runs.show_standing import console

    found, damaged = read_runs(runs)
    for path, reason in damaged:
        click.echo(f"passed over {path}: {reason}", err=True)
    for text in (text for run in found for text in run.damaged):
        click.echo(f"passed over: {text}", err=True)
    if len(found) < 2:
        raise ConfigError("there is only one run to compare", "Name two run directories or more, or a sweep.")
    result = differences(found, step)
    if as_json:
        click.echo(json_text(result.to_dict(), indent=2))
    else:
        show_differences(result, console())
