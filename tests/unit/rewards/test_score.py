"""Scoring: what functions are given, how scores add up, and what is said when a function misbehaves."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.score import RewardBatch, score

BATCH = RewardBatch(
    completions=["one", "two"],
    prompts=[[{"role": "user", "content": f"question {n}"}] for n in (1, 2)],
    columns={"answer": [1, 2]},
    finish_reasons=["stop", "length"],
    completion_ids=[[5], [6, 7]],
)


def fails(function, batch=BATCH):
    with pytest.raises(RewardError) as caught:
        score({"mine": function}, None, batch)
    assert "mine" in str(caught.value)
    return str(caught.value)


def test_functions_get_what_they_declare():
    seen = {}

    def narrow(completions, answer, finish_reasons, missing=None):
        seen["narrow"] = (completions, answer, finish_reasons, missing)
        return [0, 0]

    def wide(**everything):
        seen["wide"] = set(everything)
        return [0, 0]

    score({"narrow": narrow, "wide": wide}, None, BATCH)
    assert seen["narrow"] == (["one", "two"], [1, 2], ["stop", "length"], None)
    assert seen["wide"] == {"completions", "prompts", "answer", "finish_reasons", "completion_ids"}


def test_weights_and_absent_scores():
    functions = {"a": lambda completions: [1.0, None], "b": lambda completions: (True, 0.5)}
    table = score(functions, [2.0, 10.0], BATCH)
    assert table.columns == {"a": [1.0, None], "b": [1.0, 0.5]}
    assert table.totals == [12.0, 5.0]
    assert score(functions, None, BATCH).totals == [2.0, 0.5]


def test_no_score_at_all():
    with pytest.raises(RewardError, match="no reward function gave a score for completion 1"):
        score({"a": lambda completions: [1.0, None]}, None, BATCH)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "1 scores for 2 completions"),
        (3, "returned a int, not a list"),
        ([1.0, "x"], "a str for completion 1 (prompt 'question 2'"),
        ([1.0, Decimal(1)], "a Decimal for completion 1"),
        ([math.nan, 1.0], "nan for completion 0 (prompt 'question 1'"),
        ([1.0, -math.inf], "-inf for completion 1"),
    ],
)
def test_what_is_no_reward(returned, said):
    assert said in fails(lambda completions: returned)


def test_a_failing_function_is_shown_with_the_completion_that_broke_it():
    def function(completions, answer):
        return [1 / (value - 2) for value in answer]

    text = fails(function)
    assert "completion 1 (prompt 'question 2', completion 'two')" in text
    assert "ZeroDivisionError" in text
    assert "test_score.py:" in text


def test_a_function_that_fails_on_the_batch_only():
    def function(completions):
        if len(completions) > 1:
            raise KeyError("too many")
        return [1.0]

    assert "on none of them alone" in fails(function)


def test_a_column_that_is_not_there():
    def function(completions, anwser):
        return [1.0, 1.0]

    text = fails(function)
    assert "'anwser'" in text and "Did you mean answer?" in text


def test_long_texts_are_cut():
    batch = RewardBatch(["x" * 1000] * 2, [[{"role": "user", "content": "y" * 1000}]] * 2, {}, [], [])
    assert len(fails(lambda completions: [None, "no"], batch)) < 400
