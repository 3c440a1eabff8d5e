"""How runs stand, for people: a block of lines for one run, a table for many."""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_hpc.errors import ConfigError
from grpo_hpc.observe.draw import duration, sparkline
from grpo_hpc.observe.history import History
from grpo_hpc.observe.metrics import PHASES, lookup
from grpo_hpc.runs.overview import Comparison, Overview
from grpo_hpc.runs.run_dir import short_path
from grpo_hpc.runs.standing import LIVE, Standing
from grpo_hpc.runs.sweep import show_value

_STYLES = {
    "success": "green",
    "running": "cyan",
    "starting": "cyan",
    "queued": "blue",
    "prepared": "dim",
    "stopped": "yellow",
    "cancelled": "yellow",
    "timeout": "yellow",
    "preempted": "yellow",
}
_SPARK = 40

_NAMED = 3  # things of one kind that are named one by one


def console() -> Console:
    """For a terminal as wide as it is; lines in a pipe are never cut or folded."""
    found = Console()
    return found if found.is_terminal else Console(width=1000)


def show_standing(found: Standing, out: Console) -> None:
    """Print everything about one run, a fact per line."""
    head = Text.assemble((found.name, "bold"), "  ", (found.state, f"bold {_style(found.state)}"))
    head.append(f"  {found.detail}" if found.detail else "")
    lines = [head, *(Text.assemble((f"  {label:<12}", "dim"), text) for label, text in _facts(found))]
    for line in lines:
        out.print(line, soft_wrap=True)


def show_courses(metrics_path: Path, names: Sequence[str], out: Console) -> None:
    """Print the newest value of each metric, and how it came there.

    Raises:
        ConfigError: the run has no such metric.
    """
    history = History.read(metrics_path) if names else History()
    for name in names:
        metric, newest = lookup(name), history.last(name)
        if newest is None:
            near = difflib.get_close_matches(name, history.names(), n=3)
            raise ConfigError(
                f"there are no values of {name} in {metrics_path}", f"Near it: {', '.join(near)}." if near else ""
            )
        value = metric.show(newest[1]) if metric else f"{newest[1]}"
        course = history.series(name).values()
        seen = [metric.seen(one) if metric and one is not None else one for one in course]
        spark = Text(sparkline(seen, _SPARK), style="cyan")
        out.print(Text.assemble((f"  {name:<12}", "dim"), f"{value}  ", spark), soft_wrap=True)


def _facts(found: Standing) -> Iterator[tuple[str, Text]]:
    yield "step", _step(found)
    if found.rewards:
        spark = Text(sparkline(found.rewards, _SPARK), style="cyan")
        yield "reward", Text.assemble(_number(found.reward), "  ", spark)
    if found.held_out:
        yield "held out", Text("  ".join(f"{name} {_number(value)}" for name, value in found.held_out.items()))
    if found.attempt is not None:
        where = f" on {', '.join(found.nodes)}" if found.nodes else ""
        yield "attempt", Text(f"{found.attempt}{where}, begun {_ago(found.started)}".replace(", begun -", ""))
    if found.attempt is not None and found.state not in LIVE:
        yield "took", Text(duration(found.seconds_run) + (f" in {found.attempt} starts" if found.attempt > 1 else ""))
    if found.job_ids:
        yield "jobs", Text(f"{', '.join(found.job_ids)} ({found.executor})")
    if found.state in LIVE and found.heard is not None:
        yield "last event", _last_event(found)
    if found.last_error:
        yield "last error", Text(found.last_error, style="red" if found.state != "success" else "")
    for label, path in (("checkpoint", found.checkpoint), ("export", found.export)):
        if path:
            yield label, Text(path)
    if found.logs:
        yield "logs", Text(found.logs)
    for damaged in found.damaged:
        yield "passed over", Text(damaged, style="red")
    yield "run folder", Text(found.run_dir)
    if found.state not in LIVE and found.state != "success":
        yield "go on with", Text(f"grpo-hpc resume {quote(short_path(found.run_dir))}")


def _last_event(found: Standing) -> Text:
    if not found.silent(time.time()):
        return Text(_ago(found.heard))
    usual = f", and a step takes {duration(found.seconds_per_step)}" if found.seconds_per_step is not None else ""
    look = f"grpo-hpc logs {quote(short_path(found.run_dir))}"
    return Text(f"{_ago(found.heard)}{usual}: perhaps it hangs; look at `{look}`", style="yellow")


def _step(found: Standing) -> Text:
    line = Text(f"{found.step} of {found.total_steps}")
    if found.seconds_per_step is not None:
        line.append(f", {duration(found.seconds_per_step)} a step")
    if found.seconds_left is not None:
        line.append(f", about {duration(found.seconds_left)} left")
    if found.phase:
        line.append(f"; {PHASES.get(found.phase, found.phase)}", style="dim")
    return line


def _runs_table(runs: Iterable[Standing], extra: Sequence[str] = (), cells: Sequence[Sequence[str]] = ()) -> Table:
    """A table with one run a line.

    Args:
        extra: titles of further columns, after the name.
        cells: for every run the texts of those columns.
    """
    runs = list(runs)
    held_out = list(dict.fromkeys(name for run in runs for name in run.held_out))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", *extra, "state"):
        table.add_column(title, overflow="fold")
    for title in ("step", "reward", *(f"held out: {name}" for name in held_out), "changed"):
        table.add_column(title, justify="right", no_wrap=True)
    for run, texts in zip(runs, cells or [()] * len(runs), strict=True):
        table.add_row(
            Text(run.name),
            *map(Text, texts),
            Text(run.state, style=_style(run.state)),
            f"{run.step}/{run.total_steps}",
            _number(run.reward),
            *(_number(run.held_out.get(name)) for name in held_out),
            _ago(run.changed),
        )
    return table


def show(found: Comparison | Overview, out: Console) -> None:
    """Print many runs."""
    if isinstance(found, Comparison):
        _show_comparison(found, out)
    else:
        _show_overview(found, out)


def _show_comparison(found: Comparison, out: Console) -> None:
    """Print the runs of a sweep with what differs between them."""
    short = [key.rpartition(".")[2] for key in found.keys]
    titles = short if len(set(short)) == len(short) else found.keys
    cells = [[show_value(values[key]) for key in found.keys] for values in found.values]
    out.print(_runs_table(found.runs, titles, cells))
    _show_foreign(found.damaged, out)


def _show_overview(found: Overview, out: Console) -> None:
    """Print what a folder of runs holds."""
    if found.runs:
        out.print(_runs_table(found.runs))
    for name, runs in found.sweeps.items():
        counts = Counter(run.state for run in runs)
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        best = max((run.reward for run in runs if run.reward is not None), default=None)
        line = Text.assemble((name, "bold"), f"  sweep of {len(runs)}: {states}; best reward {_number(best)}")
        out.print(line, soft_wrap=True)
    if not found.runs and not found.sweeps:
        out.print(Text(f"There is no run in {found.folder}."), soft_wrap=True)
    _show_foreign(found.foreign, out)


def _show_foreign(foreign: Sequence[tuple[str, str]], out: Console) -> None:
    """Name what lies in the folder and is no run, with the reason; things of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in foreign:
        by_reason.setdefault(reason, []).append(short_path(path))
    for reason, paths in by_reason.items():
        more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
        out.print(Text(f"passed over {', '.join(paths[:_NAMED])}{more}: {reason}", style="dim"), soft_wrap=True)


def _number(value: float | None) -> str:
    """A reward as people read it."""
    return "-" if value is None else f"{value:.3f}"


def _ago(then: float | None) -> str:
    """How long ago a moment was."""
    return "-" if then is None else f"{duration(time.time() - then)} ago"


def _style(state: str) -> str:
    return _STYLES.get(state, "red" if state not in LIVE else "")
