"""``grpo-hpc clean``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from grpo_hpc.cli.completion import folders_of_runs

if TYPE_CHECKING:
    from grpo_hpc.runs.clearing.leftovers import Leftover


_NAMED = 3  # things of one kind that are named one by one


@click.command("clean", short_help="Delete what nobody needs of runs; without --delete show it only.")
@click.argument("folder", metavar="[DIR]", required=False, shell_complete=folders_of_runs)
@click.option("--delete", is_flag=True, help="Delete it; without this nothing is touched.")
@click.option(
    "--checkpoints",
    type=click.IntRange(min=0),
    metavar="N",
    help="Also all but the N newest whole checkpoints of runs that are over; 0 is for finished runs with an export.",
)
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Also whole runs, with their models, that have not changed for N days.",
)
def command(folder: str | None, delete: bool, checkpoints: int | None, days: float | None) -> int:
    """Show what can be deleted in the folder DIR of runs (./runs when it is left out) or the run DIR, or delete it.

    That is: runs that --fresh has moved away (NAME.old-K), checkpoints that were never finished, or are damaged where
    newer ones are whole, data sets as tokens, what killed commands left, and shared memory of killed vLLM servers of
    these runs on this machine. Nothing is taken from a run that waits or runs, or of which that is not known, nor what
    such a run of the folder reads from.
    """
    from grpo_hpc.jobs.checks.node_reports import this_node
    from grpo_hpc.report.visible import visible
    from grpo_hpc.runs.clearing.leftovers import Wanted, find_leftovers
    from grpo_hpc.runs.overview import DEFAULT_FOLDER
    from grpo_hpc.runs.run_dir import short_path

    found = find_leftovers(folder or DEFAULT_FOLDER, Wanted(days, checkpoints, this_node()))
    for reason in dict.fromkeys(reason for _, reason in found.kept):
        paths = [short_path(path) for path, why in found.kept if why == reason]
        more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
        click.echo(visible(f"not touched: {', '.join(paths[:_NAMED])}{more}: {reason}"))
    if not found.leftovers:
        click.echo("There is nothing to delete.")
        return 0
    if delete:
        return _delete(found.leftovers)
    for left in found.leftovers:
        click.echo(_line(left))
    total = _size(sum(left.bytes for left in found.leftovers))
    click.echo(f"\n{total} in all. Nothing was deleted; the same command with --delete does it.")
    return 0


def _delete(leftovers: Sequence[Leftover]) -> int:
    """Delete all that can be; what cannot is named."""
    from grpo_hpc.errors import EXIT_USER_ERROR, EnvironmentProblem
    from grpo_hpc.runs.clearing.leftovers import remove

    freed, code = 0, 0
    for left in leftovers:
        try:
            remove(left)
        except EnvironmentProblem as error:
            click.echo(f"not deleted: {error}", err=True)
            code = EXIT_USER_ERROR
            continue
        freed += left.bytes
        click.echo(f"deleted {_line(left).lstrip()}")
    click.echo(f"\n{_size(freed)} are free again.")
    return code


def _line(left: Leftover) -> str:
    from grpo_hpc.report.visible import visible
    from grpo_hpc.runs.run_dir import short_path

    return visible(f"{_size(left.bytes):>10}  {short_path(left.path)}  ({left.why})")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB"
