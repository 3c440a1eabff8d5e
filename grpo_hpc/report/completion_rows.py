"""Completions for people: which of them a page holds, and the files beside it that hold them all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_hpc.errors import GrpoHpcError, of_system
from grpo_hpc.files import write_atomically
from grpo_hpc.html_page import in_script
from grpo_hpc.observe.completions import read_completions, steps_with_completions
from grpo_hpc.observe.jsonl import json_text

Row = dict[str, Any]
_STEPS = 12  # of which a sample is taken
_HEAD, _TAIL = 8000, 4000  # characters of a long text that a page holds: answers come at the end


@dataclass
class Sample:
    """Some completions of a run, in whole groups.

    Attributes:
        rows: as they are recorded; long texts cut.
        steps: every step that has any.
        damaged: what could not be read, and why.
    """

    rows: list[Row] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def sample(folder: Path, wanted: int) -> Sample:
    """About ``wanted`` completions from steps over the whole run, the first and the last among them."""
    found = Sample()
    found.steps = recorded_steps(folder, found.damaged)
    chosen = spread(found.steps, min(_STEPS, wanted))
    for step in chosen:
        groups = list(_groups(rows_of(folder, step, found.damaged)).values())
        for group in spread(groups, max(1, round(wanted / len(chosen) / max(1, len(groups[0]))))) if groups else []:
            found.rows += [_for_page(row) for row in group]
    return found


def write_beside(run: int, folder: Path, beside: Path) -> list[str]:
    """Write every completion into files that the page loads step by step; returns what could not be read, and why.

    Args:
        run: its number on the page.
        folder: of the run's completions.
        beside: folder for the files.
    """
    damaged: list[str] = []
    beside.mkdir(exist_ok=True)
    for step in recorded_steps(folder, damaged):
        rows = in_script(json_text(rows_of(folder, step, damaged)))
        write_atomically(beside / f"run_{run}_step_{step}.js", f"loadCompletions({run},{step},{rows})\n")
    return damaged


@dataclass(frozen=True)
class Wanted:
    """Which completions somebody wants to see.

    Attributes:
        least, most: reward; one without a reward is outside of every bound.
        pattern: found in prompt or completion.
    """

    least: float | None = None
    most: float | None = None
    pattern: re.Pattern[str] | None = None

    def __call__(self, row: Row) -> bool:
        reward = row.get("reward")
        low = self.least is None or (reward is not None and reward >= self.least)
        high = self.most is None or (reward is not None and reward <= self.most)
        return low and high and (self.pattern is None or any(map(self.pattern.search, texts(row))))


def clear(beside: Path) -> None:
    """Remove what :func:`write_beside` left for an earlier page."""
    for file in beside.glob("run_*_step_*.js"):
        file.unlink()


def matching(folder: Path, steps: Sequence[int], wanted: Wanted, damaged: list[str]) -> Iterator[Row]:
    """Rows of ``steps`` that are ``wanted``; what cannot be read is noted in ``damaged``."""
    for step in steps:
        yield from filter(wanted, rows_of(folder, step, damaged))


def texts(row: Row) -> Iterator[str]:
    """What was said in a row, by whom ever."""
    for message in [*(row.get("messages") or []), *(row.get("turns") or [])]:
        yield told(message)
    yield str(row.get("completion") or "")


def told(message: Mapping[str, Any]) -> str:
    """The text of a message, with the thoughts before it and the calls of tools behind it."""
    calls = message.get("tool_calls")
    parts = said(message.get("reasoning_content")), said(message.get("content")), json_text(calls) if calls else ""
    return "\n".join(filter(None, parts))


def said(content: Any) -> str:
    """The text of a message, whose content may be a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text") or f"[{part.get('type')}]") for part in parts)


def cut(value: Any) -> Any:
    """``value`` with the middle of long texts left out, which is said where it was."""
    if isinstance(value, str) and len(value) > _HEAD + _TAIL + 100:
        left_out = len(value) - _HEAD - _TAIL
        return f"{value[:_HEAD]}\n[... {left_out:,} characters are left out on this page ...]\n{value[-_TAIL:]}"
    if isinstance(value, dict):
        return {key: cut(entry) for key, entry in value.items()}
    return [cut(entry) for entry in value] if isinstance(value, list) else value


def spread(found: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of ``found``, evenly spread, with both ends."""
    if len(found) <= count or count < 1:
        return list(found)[: max(0, count)] if count < 1 else list(found)
    last = len(found) - 1
    return [found[last if count == 1 else round(k * last / (count - 1))] for k in range(count)]


def _for_page(row: Row) -> Row:
    """``row`` as a page holds it; values of tokens belong to a whole text."""
    values, rest = row.get("by_token"), {name: value for name, value in row.items() if name != "by_token"}
    short = cut(rest)
    return short if values is None or short["completion"] != rest["completion"] else {**short, "by_token": values}


def _groups(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get("position"), []).append(row)
    return dict(sorted(groups.items(), key=lambda group: str(group[0]).zfill(20)))


def recorded_steps(folder: Path, damaged: list[str]) -> list[int]:
    """The steps that have completions in ``folder``; why it cannot be read is noted in ``damaged``."""
    try:
        return steps_with_completions(folder)
    except OSError as error:
        damaged.append(of_system(error).message)
        return []


def rows_of(folder: Path, step: int, damaged: list[str]) -> list[Row]:
    """The completions of ``step``; what cannot be read is noted in ``damaged``."""
    rows: list[Row] = []
    try:
        rows.extend(read_completions(folder, step))
    except GrpoHpcError as error:
        damaged.append(error.message)
    sound = [row for row in rows if _is_sound(row)]
    if len(sound) < len(rows):
        damaged.append(f"{len(rows) - len(sound)} of {len(rows)} rows of step {step} in {folder} are no completions")
    return sound


def _is_sound(row: Row) -> bool:
    """It has the fields that the trainer writes, as far as their kind matters to those who show them."""
    messages: Any = row.get("messages")
    turns: Any = row.get("turns") or []
    figures = [row.get(name) for name in ("reward", "advantage", "tokens", "position")]
    lists = isinstance(messages, list) and isinstance(turns, list)
    kinds = lists and all(isinstance(message, dict) for message in [*messages, *turns])
    numbers = all(figure is None or isinstance(figure, int | float) for figure in figures)
    named = all(isinstance(row.get(name) or {}, dict) for name in ("rewards", "failures"))
    return kinds and numbers and named and isinstance(row.get("completion"), str)
