"""What a search found, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_hpc.plan.make import Estimate
from grpo_hpc.plan.memory import GIB
from grpo_hpc.plan.search import Result


def show_results(results: Sequence[Result], console: Console) -> None:
    """One number of nodes in full; several as one line each, the smallest that fits marked."""
    if len(results) == 1:
        _show_one(results[0], console)
        return
    table = _table("How many nodes")
    fitting = [result for result in results if result.best]
    for result in results:
        if not result.best:
            table.add_row(str(result.nodes), *["-"] * 5, "nothing fits")
            continue
        note = "the fewest that fit" if result is fitting[0] else ""
        fastest = max(fitting, key=lambda r: r.best[0].times.rate if r.best[0].times else 0.0)
        note = ", ".join(filter(None, [note, "most tokens/s per GPU" if result is fastest else ""]))
        table.add_row(str(result.nodes), *_row(result.best[0]), note)
    console.print(table)


def _show_one(result: Result, console: Console) -> None:
    if result.best:
        table = _table(f"The best of {result.tried:,} layouts on {result.nodes} nodes")
        for number, found in enumerate(result.best, 1):
            table.add_row(str(number), *_row(found), "")
        console.print(table)
    else:
        console.print(Text(f"None of {result.tried:,} layouts fits on {result.nodes} nodes.", style="bold red"))
    lost = Table(title="Why the others lost", title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD)
    lost.add_column("layouts", justify="right")
    lost.add_column("reason")
    for reason, count in sorted(result.lost.items(), key=lambda item: -item[1]):
        lost.add_row(f"{count:,}", reason)
    console.print(lost)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "layout", "vLLM", "GiB", "s/step", "tok/s", ""):
        table.add_column(name, justify="right" if name in ("GiB", "s/step", "tok/s") else "left")
    table.caption, table.caption_justify = "tok/s is per GPU; mb: tokens of a micro-batch", "left"
    return table


def _row(found: Estimate) -> list[str]:
    e, times = found.execution, found.times
    d = e.degrees
    sizes = {axis: d.size(axis) for axis in ("tp", "cp", "pp", "vpp", "ep", "etp")}
    layout = " ".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1)
    layout = f"{layout} dp{d.dp} mb{e.micro_tokens:,}".strip() + (" recompute" if e.recompute != "none" else "")
    away = [f"sleep {e.sleep_level}"] if e.sleep_level else []
    away += ["model away"] if e.offload_model else []
    away += ["optimizer away"] if e.offload_optimizer else []
    where = [f"{e.server_nodes} nodes"] if e.server_nodes else []
    return [
        layout,
        ", ".join([*where, f"tp{e.engine_tp} {e.memory_share:.0%}", *away]),
        f"{found.memory.peak.total / GIB:.0f}",
        f"{times.step:,.1f}" if times else "-",
        f"{times.rate:,.0f}" if times else "-",
    ]
