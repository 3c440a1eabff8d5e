"""Scoring: how scores add up, and what becomes of failures."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.calling import only_score, wanted
from grpo_hpc.rewards.registry import OFFERED
from grpo_hpc.rewards.score import RewardBatch, require_scores, score
from grpo_hpc.rewards.worker_pool import WorkerPool

BATCH = RewardBatch(
    completions=["one", "two"],
    prompts=[[{"role": "user", "content": f"question {n}"}] for n in (1, 2)],
    columns={"answer": [1, 2]},
    finish_reasons=["stop", "length"],
    completion_ids=[[5], [6, 7]],
    assistant_turns=["<think>one", "<think>two"],
)
OWN = """
def first(completions):
    return [1.0 if completions[0] == "one" else None]

def second(answer):
    return [1 / (answer[0] - 2)]

def broken(completions):
    raise KeyError("always")
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    pool = WorkerPool([f"{path}:{name}" for name in ("first", "second", "broken")], workers=1)
    yield pool
    pool.close()


def test_functions_get_what_they_declare():
    def narrow(completions, answer, missing=None, *, answers=3): ...

    def wide(*, answer=3, **everything): ...

    offered = BATCH.only(1)
    assert wanted("narrow", narrow, offered) == {"completions": ["two"], "answer": [2]}
    assert set(wanted("wide", wide, offered)) == {*OFFERED}
    assert offered["completion_ids"] == [[6, 7]] and offered["finish_reasons"] == ["length"]


@pytest.mark.parametrize(
    ("policy", "column", "totals"),
    [("nan", [-1.0, None], [2.0 - 10.0, None]), ("zero", [-1.0, 0.0], [2.0 - 10.0, 0.0])],
)
def test_weights_absent_scores_and_policies(own, policy, column, totals):
    table = score(own, ["first", "second"], [2.0, 10.0], {"second": policy}, BATCH)
    assert table.columns == {"first": [1.0, None], "second": column}
    assert [None if math.isnan(total) else total for total in table.totals] == totals
    assert table.failures[0] == {} and table.failures[1]["second"].startswith("error: ZeroDivisionError: ")
    assert "completion 1 (prompt 'question 2', completion 'two'): ZeroDivisionError" in table.first["second"]


def test_a_failure_can_end_the_run(own):
    with pytest.raises(RewardError, match="'second' failed on completion 1") as caught:
        score(own, ["first", "second"], None, {"second": "fail"}, BATCH)
    assert "own.py:" in caught.value.hint


def test_a_whole_rollout_must_teach_something():
    bad, whole = {"broken": "error: KeyError"}, [frozenset()] * 2
    require_scores(["broken"], [math.nan, 1.0], [bad, {}], whole)
    require_scores(["broken"], [1.0, 0.0], [bad, {"broken": "timeout: 3 s"}], whole)
    with pytest.raises(RewardError, match="'broken' failed on all 2 completions; error: KeyError"):
        require_scores(["broken"], [0.0, 0.0], [bad, bad], whole)
    with pytest.raises(RewardError, match="none of 2 completions got a score: broken returned"):
        require_scores(["broken"], [math.nan, math.nan], [{}, {}], whole)


def test_rows_with_nulls_say_nothing_of_a_function():
    bad, null = {"first": "error: TypeError"}, frozenset(["first"])
    require_scores(["first"], [math.nan] * 2, [{}, {}], [null] * 2)
    require_scores(["first"], [0.0] * 2, [bad, bad], [null] * 2)
    with pytest.raises(RewardError, match="'first' failed on all 2 completions"):
        require_scores(["first"], [0.0] * 3, [bad] * 3, [null, frozenset(), frozenset()])
    with pytest.raises(RewardError, match="none of 2 completions got a score"):
        require_scores(["first", "second"], [math.nan] * 2, [{}, {}], [null] * 2)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], "2 scores for 1 completion"),
        (3, "returned a int, not a list"),
        (["x"], "a str as score"),
        ([Decimal(1)], "a Decimal as score"),
        ([-math.inf], "returned -inf"),
    ],
)
def test_what_is_no_reward(returned, said):
    with pytest.raises(RewardError, match=said):
        only_score(returned)


def test_no_score():
    assert only_score([None]) is only_score([math.nan]) is None
    assert only_score((True,)) == 1.0


def test_long_texts_are_cut(own):
    batch = RewardBatch(["x" * 1000], [[{"role": "user", "content": "y" * 1000}]], {}, ["stop"], [[1]], ["x"])
    assert len(score(own, ["broken"], None, {}, batch).first["broken"]) < 300
