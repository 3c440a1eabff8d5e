"""A check as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from grpo_hpc.images.check import Finding, failed

_STYLE = {"ok": "green", "wrong": "bold red", "note": "yellow"}


def show_findings(title: str, findings: Sequence[Finding], console: Console) -> None:
    """Print every finding and a last line that says how it ended."""
    table = Table(title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "what", "should be", "is"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        style = _STYLE[finding.verdict]
        table.add_row(
            f"[{style}]{finding.verdict}[/]", *(_plain(t) for t in (finding.what, finding.wanted, finding.found))
        )
    console.print(table)
    wrong = sum(finding.verdict == "wrong" for finding in findings)
    console.print(f"[bold red]{wrong} wrong[/]" if failed(findings) else "[green]As it should be[/]")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
