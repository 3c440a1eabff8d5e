"""One page about one run or several: curves, where the time went, the plan beside what was measured, completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from grpo_hpc.files import write_atomically
from grpo_hpc.html_page import Loads, page
from grpo_hpc.observe.jsonl import json_text
from grpo_hpc.report.completion_rows import Sample, clear, recorded_steps, sample, write_beside
from grpo_hpc.report.page_data import page_data
from grpo_hpc.report.recorded_run import RecordedRun

_SCRIPT = Path(__file__).with_name("script")
# in the order in which they build on each other
_PARTS = ("elements", "charts", "bars", "sweep", "completions", "tokens", "page")
_LIVE_PARTS = (*_PARTS[:-1], "logs", "page", "growing")


def write_run_page(
    runs: Sequence[RecordedRun],
    file: Path,
    *,
    completions: int,
    all_completions: bool = False,
    keys: Sequence[str] = (),
    damaged: Sequence[tuple[str, str]] = (),
) -> Path | None:
    """Write the page.

    Args:
        completions: about how many the page holds, of all runs together.
        all_completions: write all of them into a folder beside the page, too.
        keys: what a sweep varies; with several runs and none, what differs between their files.
        damaged: path and reason of runs that are left out.

    Returns:
        The folder beside the page, if there is one.
    """
    beside = file.with_name(f"{file.name}.completions") if all_completions else None
    if beside is not None:
        clear(beside)
    each = math.ceil(completions / len(runs))
    samples = [_sample(number, run, each, beside) for number, run in enumerate(runs)]
    more = {"beside": beside.name if beside else None, "live": None, "notes": _notes(runs, damaged, samples)}
    text = _page(runs, page_data(runs, keys) | more, samples, _PARTS, "scripts beside" if beside else "nothing")
    write_atomically(file, text)
    return beside


def live_run_page(
    runs: Sequence[RecordedRun], names: Sequence[str], keys: Sequence[str], damaged: Sequence[tuple[str, str]]
) -> str:
    """The page as a server shows it, which goes on asking for what is new.

    Args:
        names: what the server knows the runs by.
    """
    samples = [Sample() for _ in runs]
    for run, found in zip(runs, samples, strict=True):
        found.steps = recorded_steps(run.run_dir.completions, found.damaged)
    more = {"beside": "completions", "live": list(names), "notes": _notes(runs, damaged, samples)}
    return _page(runs, page_data(runs, keys) | more, samples, _LIVE_PARTS, "its own server")


def script_of(parts: Sequence[str]) -> str:
    """The parts of a page's script, in the order in which they build on each other."""
    return "\n".join((_SCRIPT / f"{part}.js").read_text(encoding="utf-8") for part in parts)


def style() -> str:
    """What the pages of runs need beyond the style of all pages."""
    return (_SCRIPT / "page.css").read_text(encoding="utf-8")


def _page(
    runs: Sequence[RecordedRun], data: Mapping[str, Any], samples: Sequence[Sample], parts: Sequence[str], loads: Loads
) -> str:
    for run, found in zip(data["runs"], samples, strict=True):
        run["completions"] = {"steps": found.steps, "rows": found.rows}
    title = ", ".join(run.label for run in runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
    body = (
        f"<h1>{escape(title)}</h1>\n<noscript>The curves are drawn by a script in this file.</noscript>\n<main></main>"
    )
    return page(title, body, style=style(), script=script_of(parts), data=json_text(data), loads=loads)


def _notes(runs: Sequence[RecordedRun], damaged: Sequence[tuple[str, str]], samples: Sequence[Sample]) -> list[str]:
    notes = [f"{path} is left out: {reason}" for path, reason in damaged]
    notes += [f"{run.label}: {text}" for run in runs for text in run.damaged]
    pairs = zip(runs, samples, strict=True)
    return notes + [f"{run.label}: {text}" for run, found in pairs for text in found.damaged]


def _sample(number: int, run: RecordedRun, completions: int, beside: Path | None) -> Sample:
    found = sample(run.run_dir.completions, completions)
    if beside is not None:
        found.damaged = write_beside(number, run.run_dir.completions, beside)
    return found
