"""``grpo-hpc list``."""

from __future__ import annotations

import json

import click


@click.command("list", short_help="Show the runs in a folder.")
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as JSON.")
def command(folder: str | None, as_json: bool) -> None:
    """Show every run in the folder DIR (./runs when it is left out): state, step, reward, last sign of life.

    What lies there and is no run, or a damaged one, is named. --json prints an object with `folder`, `runs` (each as
    `grpo-hpc status RUN_DIR --json` prints it) and `passed_over` (path and reason).
    """
    from grpo_hpc.jobs.overview import DEFAULT_FOLDER, overview
    from grpo_hpc.jobs.show_standing import console, runs_table, show_foreign

    found = overview(folder or DEFAULT_FOLDER)
    if as_json:
        passed_over = [{"path": path, "reason": reason} for path, reason in found.foreign]
        runs = [run.to_dict() for run in found.runs]
        click.echo(json.dumps({"folder": found.folder, "runs": runs, "passed_over": passed_over}, indent=2))
        return
    out = console()
    if found.runs:
        out.print(runs_table(found.runs))
    else:
        out.print(f"There is no run in {found.folder}.", soft_wrap=True)
    show_foreign(found.foreign, out)
