"""``grpo-hpc report``."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_hpc.cli.completion import run_dirs


@click.command("report", short_help="Write a page with everything about a run, or about several side by side.")
@click.argument("runs", metavar="RUN_DIR [RUN_DIR]...", nargs=-1, required=True, shell_complete=run_dirs)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Where the page goes.",
)
@click.option(
    "--completions",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    metavar="N",
    help="About how many completions the page holds, from steps over the whole of each run.",
)
@click.option(
    "--all-completions", is_flag=True, help="Write all of them, too, into a folder beside the page that it loads from."
)
def command(runs: tuple[str, ...], output: Path, completions: int, all_completions: bool) -> None:
    """Write one page about runs: curves, where the time went, plan beside measurement, completions, what differs.

    The page is one file that a browser opens from a disk, without a network. The folder of a sweep stands for all of
    its runs. A run that goes on is shown as it stands; write the page again to see more.
    """
    from grpo_hpc.report.recorded_run import read_runs, sweep_keys
    from grpo_hpc.report.run_page import write_run_page

    found, damaged = read_runs(runs)
    beside = write_run_page(
        found,
        output,
        completions=completions,
        all_completions=all_completions,
        keys=sweep_keys(runs),
        damaged=damaged,
    )
    for path, reason in damaged:
        click.echo(f"passed over {path}: {reason}", err=True)
    for text in (text for run in found for text in run.damaged):
        click.echo(f"passed over: {text}", err=True)
    click.echo(f"wrote {output}" + (f" and {beside}; keep them side by side" if beside else ""))
