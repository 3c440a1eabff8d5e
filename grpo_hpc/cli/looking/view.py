"""``grpo-hpc view``."""

from __future__ import annotations

import click

from grpo_hpc.cli.completion import folders_of_runs


@click.command("view", short_help="Show runs in a browser while they work.")
@click.argument("folder", metavar="[FOLDER]", required=False, shell_complete=folders_of_runs)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="Where it listens, on this machine alone. [default: a free port]",
)
def command(folder: str | None, port: int) -> None:
    """Show the runs in FOLDER (./runs when it is left out) in a browser: a list, curves that grow, logs, completions.

    FOLDER may be a sweep or one run. Nothing can be changed from the browser. The server listens on this machine alone
    and answers nobody who has not the address that it prints, which is a new one with every start.
    """
    from grpo_hpc.report.live.serve import serve
    from grpo_hpc.runs.overview import DEFAULT_FOLDER

    serve(folder or DEFAULT_FOLDER, port, click.echo)
