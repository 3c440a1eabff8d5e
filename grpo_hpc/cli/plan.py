"""``grpo-hpc plan``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grpo_hpc.cli.completion import run_dirs
from grpo_hpc.observe.jsonl import json_text

if TYPE_CHECKING:
    from grpo_hpc.plan.measured.pace import Pace

_MOST_SEARCHES = 256


@click.command("plan", short_help="Show layout, batch sizes, memory and time of a run; search for better layouts.")
@click.argument("runs", metavar="RUN [RUN]...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON (docs/planner.md has the schema).")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan as one page with pictures."
)
@click.option(
    "--explain",
    multiple=True,
    type=click.Choice(["batch", "memory", "time"]),
    help="Show a part in full: the batch arithmetic in words, every memory term, every part of the time.",
)
@click.option(
    "--average-completion",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Length of completions on average, for the time estimate. [default: half of max_completion_length]",
)
@click.option(
    "--like",
    metavar="RUN_DIR",
    shell_complete=run_dirs,
    help="Count with the lengths that completions of this run had, and with its measured pace of each phase.",
)
@click.option(
    "--search", is_flag=True, help="Look for better layouts: settings that change speed and memory, not learning."
)
@click.option("--nodes", metavar="FROM..TO", help="With --search: numbers of nodes to try, as in 1..64.")
@click.option(
    "--write", type=click.Path(dir_okay=False, path_type=Path), help="With --search: write the best run file here."
)
@click.option("--dry-run", is_flag=True, help="Show the script that submit would start, too; write nothing.")
def command(
    runs: tuple[str, ...],
    as_json: bool,
    html: Path | None,
    explain: tuple[str, ...],
    average_completion: int | None,
    like: str | None,
    search: bool,
    nodes: str | None,
    write: Path | None,
    dry_run: bool,
) -> None:
    """Show what the run file RUN would do: who does what, batch sizes, memory, time. Starts nothing.

    Two run files are shown side by side. KEY=VALUE after a run file changes its keys.
    """
    from grpo_hpc.cli.planned_site import planned_site
    from grpo_hpc.config import load_run
    from grpo_hpc.plan.make import make_plan

    files = _with_overrides(runs)
    pace = _pace(like, average_completion)
    if search:
        if len(files) != 1:
            raise click.UsageError("--search takes one run file")
        _search(*files[0], average_completion, pace, nodes, write, as_json)
        return
    if nodes is not None or write:
        raise click.UsageError("--nodes and --write belong to --search")
    if dry_run and (as_json or html):
        raise click.UsageError("--dry-run belongs to the plan that is shown here, not to --json and --html")
    planned = [load_run(file, changes) for file, changes in files]
    plans = [make_plan(cfg, average_completion, planned_site(cfg), pace) for cfg in planned]
    if as_json:
        found = [plan.to_dict() for plan in plans]
        click.echo(json_text(found[0] if len(found) == 1 else found, indent=2))
        return
    if html is not None:
        from grpo_hpc.files import write_atomically
        from grpo_hpc.plan.html import page_of

        write_atomically(html, page_of(plans))
        click.echo(f"wrote {html}")
        return
    from rich.console import Console

    from grpo_hpc.plan.show_plan import show_plan, show_side_by_side

    console = Console()
    if len(plans) == 1:
        show_plan(plans[0], console, explain)
    else:
        show_side_by_side(plans, console)
    if dry_run:
        _show_scripts(files)


def _pace(like: str | None, average: int | None) -> Pace | None:
    if like is None:
        return None
    if average is not None:
        raise click.UsageError("--like takes the lengths of a run; --average-completion would say otherwise")
    from grpo_hpc.report.next_plan import pace_of_run

    return pace_of_run(like)


def _show_scripts(files: list[tuple[str, list[str]]]) -> None:
    from grpo_hpc.config import load_run
    from grpo_hpc.jobs.prepare import script_of

    for file, changes in files:
        click.echo("\n" + script_of(load_run(file, changes)), nl=False)


def _with_overrides(arguments: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Run files, each with the KEY=VALUE arguments that follow it."""
    found: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if "=" not in argument:
            found.append((argument, []))
        elif not found:
            raise click.UsageError(f"name a run file before {argument}")
        else:
            found[-1][1].append(argument)
    return found


def _search(
    file: str,
    changes: list[str],
    average: int | None,
    pace: Pace | None,
    nodes: str | None,
    write: Path | None,
    as_json: bool,
) -> None:
    from grpo_hpc.cli.planned_site import planned_site
    from grpo_hpc.config import load_run
    from grpo_hpc.plan.search import changed_run, search_run
    from grpo_hpc.plan.site import on_site, site_warnings

    cfg = load_run(file, changes)
    site = planned_site(cfg)
    cfg = on_site(cfg, site)
    for warning in site_warnings(cfg, site):
        click.echo(f"Note: {warning}", err=True)
    results = search_run(cfg, average, None if nodes is None else _node_range(nodes), pace)
    if pace is not None:
        click.echo(pace, err=True)
    if as_json:
        click.echo(json_text([result.to_dict() for result in results], indent=2))
    else:
        from rich.console import Console

        from grpo_hpc.plan.show_search import show_results

        show_results(results, Console())
    best = next((result.best[0] for result in results if result.best), None)
    if write is not None:
        from grpo_hpc.config.load import dump_run
        from grpo_hpc.errors import PlanError
        from grpo_hpc.files import write_atomically

        if best is None:
            raise PlanError("no layout fits, so there is no run file to write")
        write_atomically(write, dump_run(changed_run(cfg, best.execution)))
        click.echo(f"wrote {write}")


def _node_range(text: str) -> range:
    found = re.fullmatch(r"([1-9][0-9]{0,5})(?:\.\.([1-9][0-9]{0,5}))?", text)
    nodes = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not 0 < len(nodes) <= _MOST_SEARCHES:
        raise click.UsageError(f"--nodes wants FROM..TO, at most {_MOST_SEARCHES} numbers, as in 1..64; got {text!r}")
    return nodes
