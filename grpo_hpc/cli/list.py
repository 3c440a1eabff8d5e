"""``grpo-hpc list``."""

from __future__ import annotations

import click

from grpo_hpc.cli.completion import folders_of_runs
from grpo_hpc.observe.jsonl import json_text


@click.command("list", short_help="Show the runs in a folder.")
@click.argument("folder", metavar="[DIR]", required=False, shell_complete=folders_of_runs)
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as JSON.")
def command(folder: str | None, as_json: bool) -> None:
    """Show every run in the folder DIR (./runs when it is left out): state, step, reward, last sign of life.

    A sweep is one line; `grpo-hpc list SWEEP_DIR` compares its runs. What is no run, or a damaged one, is named.

    --json prints an object with folder, runs (each as `grpo-hpc status RUN_DIR --json` prints it), sweeps (name: runs)
    and passed_over (path, reason); for a sweep what `grpo-hpc status SWEEP_DIR --json` prints.
    """
    from grpo_hpc.runs.overview import DEFAULT_FOLDER, comparison, overview
    from grpo_hpc.runs.show_standing import console, show
    from grpo_hpc.runs.sweep import Sweep

    folder = folder or DEFAULT_FOLDER
    sweep = Sweep.at(folder)
    found = comparison(sweep) if sweep else overview(folder)
    if as_json:
        click.echo(json_text(found.to_dict(), indent=2))
    else:
        show(found, console())
