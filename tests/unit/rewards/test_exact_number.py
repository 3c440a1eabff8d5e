"""The exact_number reward."""

from __future__ import annotations

import pytest

from grpo_hpc.errors import RewardError
from grpo_hpc.rewards.builtin import exact_number


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("19", 19, 1.0),
        ("7 + 12 = 19.", 19, 1.0),
        ("**19**", "19", 1.0),
        ("19, not 20", 19, 0.0),
        ("no number", 19, 0.0),
        ("", 19, 0.0),
        ("it is 1,234", 1234, 1.0),
        ("it is 1,234", "1,234", 1.0),
        ("12,3", 3, 1.0),
        ("x = -5", -5, 1.0),
        ("x = -5", 5, 0.0),
        ("x = \u22125", -5, 1.0),
        ("7-12", 12, 1.0),
        ("(3)-12", 12, 1.0),
        ("19.0", 19, 1.0),
        ("19.5", 19, 0.0),
        ("19.5", 5, 0.0),
        ("119", 19, 0.0),
        ("9007199254740993", 9007199254740993, 1.0),
        ("9007199254740992", 9007199254740993, 0.0),
        ("19", 19.0, 1.0),
        ("\\boxed{19}", " 19 ", 1.0),
    ],
)
def test_the_last_number_counts(text, answer, expected):
    assert exact_number([text], [answer]) == [expected]


@pytest.mark.parametrize("answer", ["blue", 1.5, "", "3 apples", float("nan")])
def test_an_answer_that_is_no_integer(answer):
    with pytest.raises(RewardError, match="'answer'"):
        exact_number(["1"], [answer])


def test_a_null_is_no_score_and_no_error():
    assert exact_number(["19", "19"], [None, 19]) == [None, 1.0]
