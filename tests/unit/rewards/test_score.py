"""Scoring: how scores add up, and what becomes of failures."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.calling import only_score, wanted
from grpo_hpc.rewards.registry import OFFERED
from grpo_hpc.rewards.runner import RewardRunner
from grpo_hpc.rewards.score import Answer, first_failures, require_scores, score

ANSWERS = [
    Answer("one", [{"role": "user", "content": "question 1"}], {"answer": 1}, "stop", [5], "<think>one", []),
    Answer("two", [{"role": "user", "content": "question 2"}], {"answer": 2}, "length", [6, 7], "<think>two", []),
]
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
    runner = RewardRunner([f"{path}:{name}" for name in ("first", "second", "broken")], {}, {}, workers=1)
    yield runner
    runner.close()


def test_functions_get_what_they_declare():
    def narrow(completions, answer, missing=None, *, answers=3): ...

    def wide(*, answer=3, **everything): ...

    offered = ANSWERS[1].offered()
    assert wanted("narrow", narrow, offered) == {"completions": ["two"], "answer": [2]}
    assert set(wanted("wide", wide, offered)) == {*OFFERED}
    assert offered["completion_ids"] == [[6, 7]] and offered["finish_reasons"] == ["length"]


@pytest.mark.parametrize(
    ("policy", "column", "totals"),
    [("nan", [-1.0, None], [2.0 - 10.0, None]), ("zero", [-1.0, 0.0], [2.0 - 10.0, 0.0])],
)
def test_weights_absent_scores_and_policies(own, policy, column, totals):
    futures = [score(own, ["first", "second"], [2.0, 10.0], {"second": policy}, answer) for answer in ANSWERS]
    scores = [future.result() for future in futures]
    assert [s.rewards for s in scores] == [{"first": a, "second": b} for a, b in zip([1.0, None], column, strict=True)]
    assert [None if math.isnan(s.total) else s.total for s in scores] == totals
    assert scores[0].failures == {} and scores[1].failures["second"].startswith("error: ZeroDivisionError: ")
    said = first_failures([s.failures for s in scores])["second"]
    assert "'second' failed; error: ZeroDivisionError" in said and "(prompt 'question 2', completion 'two')" in said


def test_a_failure_can_end_the_run(own):
    with pytest.raises(RewardError, match=r"'second' failed; error: Zero.*completion 'two'") as caught:
        score(own, ["first", "second"], None, {"second": "fail"}, ANSWERS[1]).result()
    assert "own.py:" in caught.value.hint


def test_the_first_completion_that_a_function_failed_on():
    failures = [{}, {"a": "error: 1"}, {"a": "error: 2", "b": "timeout: 3"}]
    assert first_failures(failures) == {
        "a": "the reward function 'a' failed; error: 1",
        "b": "the reward function 'b' failed; timeout: 3",
    }


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
    answer = Answer("x" * 1000, [{"role": "user", "content": "y" * 1000}], {}, "stop", [1], "x", [])
    assert len(score(own, ["broken"], None, {}, answer).result().failures["broken"]) < 300
