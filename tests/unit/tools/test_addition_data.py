"""The quickstart's questions."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

TOOL = runpy.run_path(str(Path(__file__).parents[3] / "tools" / "make_addition.py"))


def test_every_pair_is_in_one_file_and_no_sum_is_known_from_the_other():
    train, held_out = TOOL["split_pairs"](42)
    assert len(held_out) == 64 and len(set(train) | set(held_out)) == len(train) + 64 == 400
    assert not {frozenset(pair) for pair in train} & {frozenset(pair) for pair in held_out}


def test_the_seed_decides():
    assert TOOL["split_pairs"](1) == TOOL["split_pairs"](1) != TOOL["split_pairs"](2)


def test_rows_are_questions_with_right_answers(tmp_path):
    TOOL["write_sets"](tmp_path / "x", [TOOL["row"](7, 12)], [])
    row = json.loads((tmp_path / "x" / "train.jsonl").read_text())
    assert row["messages"] == [
        {"role": "system", "content": "You add numbers."},
        {"role": "user", "content": "What is 7 + 12? Give only the final number."},
    ]
    assert row["answer"] == 19
