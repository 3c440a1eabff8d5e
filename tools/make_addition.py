"""Make the addition questions of the quickstart: data/addition/train.jsonl and eval.jsonl.

One row per ordered pair of the numbers 1 to 20. The held-out pairs are unordered, so that 7 + 12 in one file never
meets 12 + 7 in the other. The same seed gives the same files.

    python tools/make_addition.py [--target data/addition] [--seed 42]
"""

from __future__ import annotations

import argparse
import random
import sys
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.demo_rows import write_sets

TARGET = Path(__file__).parents[1] / "data" / "addition"
LARGEST = 20
HELD_OUT_ROWS = 64

Pair = tuple[int, int]


def split_pairs(seed: int) -> tuple[list[Pair], list[Pair]]:
    """Ordered pairs for training and for evaluation, both shuffled; no unordered pair is in both."""
    unordered = list(combinations_with_replacement(range(1, LARGEST + 1), 2))
    chance = random.Random(seed)
    chance.shuffle(unordered)
    held_out: list[Pair] = []
    train: list[Pair] = []
    for a, b in unordered:
        orders = sorted({(a, b), (b, a)})
        fits = len(held_out) + len(orders) <= HELD_OUT_ROWS
        (held_out if fits else train).extend(orders)
    chance.shuffle(train)
    chance.shuffle(held_out)
    return train, held_out


def row(a: int, b: int) -> dict[str, Any]:
    """One question in chat format with its answer."""
    question = f"What is {a} + {b}? Give only the final number."
    messages = [{"role": "system", "content": "You add numbers."}, {"role": "user", "content": question}]
    return {"messages": messages, "answer": a + b}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the addition questions of the quickstart.")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="which questions are held out (default: %(default)s)")
    arguments = parser.parse_args()
    train, held_out = split_pairs(arguments.seed)
    write_sets(arguments.target, [row(*pair) for pair in train], [row(*pair) for pair in held_out])


if __name__ == "__main__":
    main()
