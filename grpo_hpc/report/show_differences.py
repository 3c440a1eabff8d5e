"""What differs between runs, in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_hpc.observe.history import Value
from grpo_hpc.observe.metrics import lookup
from grpo_hpc.report.differences import Difference, Differences


def show_differences(found: Differences, out: Console) -> None:
    """Print settings, environment and metrics, a table each."""
    _show("run file", found.labels, found.settings, out)
    _show("environment", found.labels, found.environment, out)
    if found.step is None:
        out.print("No step was made by all of them, so there are no metrics to compare.")
        return
    rows = [[_shown(one.name, value) for value in [*one.at, *one.mean]] for one in found.metrics]
    differing = [(one.name, *row) for one, row in zip(found.metrics, rows, strict=True) if _differs(row, len(one.at))]
    means = [f"{label}, last fifth" for label in found.labels]
    out.print(_table([f"metrics at step {found.step}", *found.labels, *means], differing, "right"))
    if alike := len(rows) - len(differing):
        out.print(f"{alike} further metrics are the same.", style="dim")


def _show(title: str, labels: Sequence[str], found: Sequence[Difference], out: Console) -> None:
    if found:
        rows = ([one.key, *("-" if value is None else value for value in one.values)] for one in found)
        out.print(_table([title, *labels], rows, "left"))
    else:
        out.print(f"{title}: no difference")
    out.print()


def _differs(row: Sequence[str], runs: int) -> bool:
    return len(set(row[:runs])) > 1 or len(set(row[runs:])) > 1


def _shown(name: str, value: Value) -> str:
    metric = lookup(name)
    return metric.show(value) if metric else "nan" if value is None else f"{value:.4g}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], justify: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, title in enumerate(titles):
        table.add_column(title, justify="right" if at and justify == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
