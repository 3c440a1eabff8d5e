"""What is checked inside a fork, beside the command line."""

from __future__ import annotations

import json
from pathlib import Path


def round_trip(file: str) -> None:
    """A run file that is accepted is the same run after it was written and read again."""
    from grpo_hpc.config import dump_run, load_run

    cfg = load_run(file)
    Path("again.yaml").write_text(dump_run(cfg), encoding="utf-8")
    again = load_run("again.yaml")
    assert again == cfg, f"{cfg!r} became {again!r}"


def strict_json(text: str) -> object:
    """What ``text`` holds; ValueError where it is no JSON, and NaN and Infinity are none."""

    def refuse(word: str) -> object:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)
