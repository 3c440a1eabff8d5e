"""Rows of the small data sets that the quickstart and its two neighbours learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_sets(folder: Path, train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> None:
    """Write ``train.jsonl`` and ``eval.jsonl``, one row per line, and say how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("eval", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{folder}: {len(train)} questions to learn from, {len(held_out)} held out")
