"""``grpo-hpc completions``."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import click

from grpo_hpc.cli.completion import run_dirs
from grpo_hpc.observe.jsonl import json_text


@click.command("completions", short_help="Show what the model wrote.")
@click.argument("run_dir", metavar="RUN_DIR", shell_complete=run_dirs)
@click.option("--step", "steps", metavar="N[..M]", help="Steps to look at. [default: the newest; all with a filter]")
@click.option("--min-reward", type=float, help="Only those with at least this reward.")
@click.option("--max-reward", type=float, help="Only those with at most this reward.")
@click.option("--grep", metavar="PATTERN", help="Only those whose prompt or text this regular expression is found in.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Stop after so many.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as they are recorded, one JSON object a line.")
def command(
    run_dir: str,
    steps: str | None,
    min_reward: float | None,
    max_reward: float | None,
    grep: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show completions of a run with their rewards.

    What a terminal would obey instead of show is written as an escape, such as \\x1b.
    """
    from grpo_hpc.report.completion_rows import Wanted, matching
    from grpo_hpc.report.show_completions import show_completion
    from grpo_hpc.runs.show_standing import console
    from grpo_hpc.runs.sweep import one_run_at

    folder = one_run_at(run_dir).completions
    wanted = Wanted(min_reward, max_reward, _pattern(grep))
    damaged: list[str] = []
    rows = matching(folder, _steps(folder, steps, wanted != Wanted()), wanted, damaged)
    found, out = list(islice(rows, limit)), console()
    for row in found:
        click.echo(json_text(row)) if as_json else show_completion(row, out)
    more = "; there are more: --limit" if next(rows, None) is not None else ""
    click.echo(f"{len(found)} shown{more}", err=True)
    for text in damaged:
        click.echo(f"passed over: {text}", err=True)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise click.UsageError(f"--grep {text!r} is no regular expression: {error}") from None


def _steps(folder: Path, asked: str | None, filtered: bool) -> list[int]:
    from grpo_hpc.errors import ConfigError
    from grpo_hpc.observe.completions import steps_with_completions

    there = steps_with_completions(folder)
    if not there:
        raise ConfigError(f"there are no completions in {folder}", "logging.log_completions writes them, step by step.")
    if asked is None:
        return there if filtered else there[-1:]
    first, dots, last = asked.partition("..")
    if not first.isdigit() or not (last.isdigit() if dots else True):
        raise click.UsageError(f"--step wants N or N..M, as in 3 or 3..8; got {asked!r}")
    found = [step for step in there if int(first) <= step <= int(last or first)]
    if not found:
        raise ConfigError(
            f"no step of {asked} was the first to use completions",
            f"There are {len(there)} that were, from {there[0]} to {there[-1]}.",
        )
    return found
