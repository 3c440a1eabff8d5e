"""Make the questions of the example with a tool: data/multiplications/train.jsonl and eval.jsonl.

Products of two numbers from 11 to 99, more than the example's model can do in its head. Each row begins with a call and
its result, and with a second call, so that the model sees how one is written and that a question asks for one. The same
seed gives the same files.

    python tools/make_multiplications.py [--target data/multiplications] [--seed 42]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.demo_rows import write_sets

TARGET = Path(__file__).parents[1] / "data" / "multiplications"
TRAIN_ROWS, HELD_OUT_ROWS = 512, 64
SYSTEM = "Use the calculator, then give its result."

Pair = tuple[int, int]


def split_pairs(seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs for training and for evaluation; none is in both."""
    pairs = list(product(range(11, 100), repeat=2))
    random.Random(seed).shuffle(pairs)
    return pairs[HELD_OUT_ROWS : HELD_OUT_ROWS + TRAIN_ROWS], pairs[:HELD_OUT_ROWS]


def call(expression: str) -> str:
    """A call as the model is to write it."""
    arguments = {"name": "calculator", "arguments": {"expression": expression}}
    return f"<tool_call>\n{json.dumps(arguments)}\n</tool_call>"


def row(a: int, b: int) -> dict[str, Any]:
    """One question in chat format with its answer."""
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "What is 23 * 45?"},
        {"role": "assistant", "content": call("23 * 45")},
        {"role": "tool", "content": "1035"},
        {"role": "assistant", "content": "1035"},
        {"role": "user", "content": "What is 61 * 17?"},
        {"role": "assistant", "content": call("61 * 17")},
        {"role": "user", "content": f"What is {a} * {b}?"},
    ]
    return {"messages": messages, "answer": a * b}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the questions of the example with a tool.")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="which questions are held out (default: %(default)s)")
    arguments = parser.parse_args()
    train, held_out = split_pairs(arguments.seed)
    write_sets(arguments.target, [row(*pair) for pair in train], [row(*pair) for pair in held_out])


if __name__ == "__main__":
    main()
