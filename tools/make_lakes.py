"""Make the lakes of the example with a game: data/lakes/train.jsonl and eval.jsonl.

A row is a short game that shows how to answer, and a seed from which a lake is made. No seed is in both files.

    python tools/make_lakes.py [--target data/lakes]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.demo_rows import write_sets

TARGET = Path(__file__).parents[1] / "data" / "lakes"
TRAIN_ROWS, HELD_OUT_ROWS = 512, 64
SYSTEM = "Answer with one word: up, down, left or right. Never step into a hole."


def row(seed: int) -> dict[str, Any]:
    """One lake; what is seen of it comes from the game."""
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Go.\n\nGoal: 1 down and 1 right. Holes: down."},
        {"role": "assistant", "content": "right"},
        {"role": "user", "content": "Goal: 1 down. Holes: none."},
        {"role": "assistant", "content": "down"},
        {"role": "user", "content": "Go."},
    ]
    return {"messages": messages, "seed": seed}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the lakes of the example with a game.")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write to (default: %(default)s)")
    arguments = parser.parse_args()
    lakes = [row(seed) for seed in range(HELD_OUT_ROWS + TRAIN_ROWS)]
    write_sets(arguments.target, lakes[HELD_OUT_ROWS:], lakes[:HELD_OUT_ROWS])


if __name__ == "__main__":
    main()
