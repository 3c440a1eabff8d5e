"""Every completion that was trained on, for people who want to read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo_hpc.observe.jsonl import JsonLines


class CompletionLog:
    """Writes one row per completion.

    Args:
        path: a file of JSON lines.
    """

    def __init__(self, path: str | Path) -> None:
        self._lines = JsonLines(path)

    def write(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append ``rows``, each marked with the optimizer ``step`` that used it first."""
        self._lines.write({"step": step, **row} for row in rows)

    def rewind(self, step: int) -> None:
        """Forget completions that were first used after ``step``."""
        self._lines.keep(lambda row: row["step"] <= step)
