"""The account of an import: tables for people, JSON for scripts, and the page of names."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_hpc.importing.fates import Fate, Flag
from grpo_hpc.importing.surroundings import ENVIRONMENT, SERVER_FLAGS
from grpo_hpc.importing.table import FLAGS
from grpo_hpc.importing.translate import Row, dotted
from grpo_hpc.importing.write import Imported

_STYLES = {
    Fate.TAKEN: "green",
    Fate.RENAMED: "green",
    Fate.CONVERTED: "cyan",
    Fate.DEFAULT: "cyan",
    Fate.NO_EFFECT: "dim",
    Fate.IGNORED: "yellow",
    Fate.UNSUPPORTED: "bold yellow",
    Fate.OPEN: "bold yellow",
    Fate.UNKNOWN: "bold red",
}


def show_import(imported: Imported, console: Console) -> None:
    """Print one row for every flag, grouped by what became of it, then what is left to do."""
    for fate in Fate:
        if rows := [row for row in imported.rows if row.fate is fate]:
            console.print(Text(f"{fate.value} ({len(rows)})", _STYLES[fate]))
            console.print(_table(rows))
    for note in imported.notes:
        console.print(Text(f"note: {note}", "yellow"))
    if imported.problems:
        console.print("Before it can run:", style="bold red")
        for problem in imported.problems:
            console.print(Text(f"  {problem.key}: {problem.text}" if problem.key else problem.text))


def _table(rows: list[Row]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2), expand=True)
    table.add_column(overflow="fold", ratio=2)
    table.add_column(overflow="fold", ratio=3)
    for row in rows:
        given = row.name if row.fate is Fate.DEFAULT else f"{row.name} {row.value}"
        table.add_row(Text(given), Text(_becomes(row)))
    return table


def _becomes(row: Row) -> str:
    taken = row.fate is Fate.TAKEN
    became = [key if taken else f"{key}: {_plain(value)}" for key, value in row.keys.items()]
    return "; ".join([*became, *([row.note] if row.note else [])])


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_dict(imported: Imported) -> dict[str, Any]:
    """The same as JSON-safe values."""
    return {
        "complete": not imported.problems,
        "flags": [
            {
                "name": row.name,
                "value": row.value,
                "place": row.place,
                "fate": row.fate.value,
                "becomes": row.keys,
                "note": row.note,
            }
            for row in imported.rows
        ],
        "to_mend": [{"key": problem.key, "text": problem.text} for problem in imported.problems],
        "notes": list(imported.notes),
        "run_file": imported.text,
    }


def markdown() -> str:
    """The page of names, docs/ms-swift-names.md."""
    head = [
        "# Names of ms-swift and of the run file",
        "",
        "Made from the table that `grpo-hpc import-swift` works by: `python -m grpo_hpc.importing.show_import`.",
        "[Moving from ms-swift](from-ms-swift.md) explains it. A default is named where ours may differ: an import",
        "writes it into the run file then.",
        "",
    ]
    tables = {"`megatron rlhf --rlhf_type grpo`": FLAGS, "`swift rollout`": SERVER_FLAGS, "Environment": ENVIRONMENT}
    return "\n".join([*head, *(_section(title, flags) for title, flags in tables.items())])


def _section(title: str, flags: tuple[Flag, ...]) -> str:
    rows = sorted((_cells(flag) for flag in flags), key=lambda cells: cells[0].lower())
    head = [f"## {title}", "", "| ms-swift 4.x | 3.11 name | default | here | |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in rows), ""])


def _cells(flag: Flag) -> tuple[str, ...]:
    default = "" if flag.default is None else "by other flags" if callable(flag.default) else _plain(flag.default)
    default += "" if flag.old_default is None else f" (3.11: {_plain(flag.old_default)})"
    first = (f"`{flag.name}`", ", ".join(f"`{name}`" for name in flag.old), default)
    if flag.fate is not None:
        return (*first, flag.fate.value, flag.why)
    key = dotted(flag.key or flag.name)
    if key is not None:
        return (*first, f"`{key}`", flag.why)
    if flag.here is not None:
        return (*first, Fate.UNSUPPORTED.value, f"`{flag.here}` is what happens here")
    return (*first, "converted" if flag.why else Fate.UNSUPPORTED.value, flag.why)


if __name__ == "__main__":
    print(markdown(), end="")
