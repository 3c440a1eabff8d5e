"""The built-in rewards against slow references, and on texts that want to break them."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.errors import ConfigError, RewardError
from grpo_hpc.rewards.accuracy import accuracy
from grpo_hpc.rewards.lengths import cosine, soft_overlong
from grpo_hpc.rewards.registry import resolve
from grpo_hpc.rewards.texts import format_reward, react_format, repetition, tool_calls

HOSTILE = ["", "<think>" * 50_000, "a" * 200_000, "\x00\ud800", "<tool_call>" + "[" * 100_000, "\\boxed{" * 2000]
PIECES = ["<think>", "</think>", "<answer>", "</answer>", "x", " ", "\n", "Action:", "Action Input:", "y"]


@pytest.mark.parametrize(
    ("text", "solution", "expected"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5", 1.0),
        ("<answer>0.5</answer> not 7", r"\frac12", 1.0),
        ("<answer>1</answer><answer>2</answer>", "2", 1.0),
        ("$x^2+1$", "1+x^2", 1.0),
        ("$x^2+1$", "1+x^3", 0.0),
        (r"\boxed{(x+1)^2}", r"$x^2+2x+1$", 1.0),
        ("3", 4, 0.0),
        ("4", 4, 1.0),
        ("", "2", 0.0),
        ("2", None, None),
        ("2", "", None),
    ],
)
def test_accuracy(text, solution, expected):
    assert accuracy([text], [solution]) == [expected]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_get_a_score_everywhere(text):
    assert accuracy([text], ["2"]) == [0.0]
    assert format_reward([text]) == react_format([text]) == [0.0]
    assert tool_calls([text], [[]])[0] in (0.0, 1.0)


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_format_is_a_regular_expression_with_each_tag_once(text):
    pattern = r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*"
    found = re.fullmatch(pattern, text, re.DOTALL)
    tag = re.compile(r"</?(think|answer)>")
    expected = bool(found) and not any(tag.search(group) for group in found.groups())
    assert format_reward([text]) == [float(expected)]


def test_format_by_example():
    assert format_reward(["<think>a</think>\n<answer>b</answer>"]) == [1.0]
    assert format_reward(["<think>a</think> so <answer>b</answer>"]) == [0.0]


def test_react_format():
    good = "<think>a</think>\nAction: search\nAction Input: {}"
    assert react_format([good, good + "  "]) == [1.0, 1.0]
    for bad in (good[7:], good.replace("search", ""), good.replace("{}", " "), good.replace("Input:", ""), "x" + good):
        assert react_format([bad]) == [0.0]


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(1, 4))
def test_repetition_counts_n_grams_of_tokens(ids, n):
    seen, repeats, total = [], 0, 0
    for start in range(len(ids) - n + 1):
        gram = ids[start : start + n]
        repeats, total = repeats + (gram in seen), total + 1
        seen.append(gram)
    expected = -0.7 * repeats / total if total else 0.0
    assert repetition([ids], n_grams=n, max_penalty=-0.7) == [pytest.approx(expected)]


def test_repetition_needs_no_white_space():
    text = "\u597d" * 30  # one word by white space
    assert repetition([[ord(sign) for sign in text]]) == [pytest.approx(-27 / 28)]


@given(st.integers(0, 40), st.integers(1, 19))
def test_soft_overlong_is_the_papers_three_cases(length, cache):
    if length <= 20 - cache:
        expected = 0.0
    elif length <= 20:
        expected = ((20 - cache) - length) / cache
    else:
        expected = -1.0
    assert soft_overlong([[1] * length], soft_cache_length=cache, max_completion_length=20) == [expected]


def test_soft_overlong_needs_a_cache_below_the_limit():
    with pytest.raises(ConfigError, match="19"):
        resolve(["soft_overlong"], {"soft_overlong": {"soft_cache_length": 20}}, {"max_completion_length": 20})


@given(st.integers(0, 15), st.booleans())
def test_cosine_between_its_ends(length, right):
    first, last = (2.0, 0.25) if right else (-3.0, -0.5)
    progress = min(length, 10) / 10
    expected = first - (first - last) * (1 - math.cos(math.pi * progress)) / 2
    scores = cosine(
        ["4" if right else "5"],
        [[1] * length],
        ["4"],
        max_completion_length=10,
        min_len_value_correct=2.0,
        max_len_value_correct=0.25,
        min_len_value_wrong=-3.0,
        max_len_value_wrong=-0.5,
    )
    assert scores == [pytest.approx(expected)]


def test_cosine_has_no_score_without_a_solution():
    assert cosine(["4"], [[1]], [None], max_completion_length=10) == [None]


def calls(*names):
    return [{"name": name, "arguments": {"a": 1, "b": [2]}} for name in names]


def block(call):
    return f"so <tool_call>{json.dumps(call)}</tool_call>"


@pytest.mark.parametrize(
    ("made", "wanted", "expected"),
    [
        ("fg", "gf", 1.0),
        ("f", "fg", 2 / 3),
        ("ff", "f", 2 / 3),
        ("h", "f", 0.0),
        ("", "", 1.0),
        ("f", "", 0.0),
        ("", "f", 0.0),
    ],
)
def test_tool_calls_are_a_multiset(made, wanted, expected):
    text = "".join(map(block, calls(*made)))
    assert tool_calls([text], [calls(*wanted)]) == [pytest.approx(expected)]
    assert tool_calls([text], [json.dumps(calls(*wanted))]) == [pytest.approx(expected)]


def test_tool_call_arguments_count():
    assert tool_calls([block({"name": "f", "arguments": {"b": [2], "a": 1}})], [calls("f")]) == [1.0]
    assert tool_calls([block({"name": "f", "arguments": {"a": 1}})], [calls("f")]) == [0.0]
    assert tool_calls(["<tool_call>{no json</tool_call>"], [calls("f")]) == [0.0]
    assert tool_calls(["any"], [None]) == [None]
    with pytest.raises(RewardError, match="expected_tool_calls"):
        tool_calls(["any"], [[{"nome": "f"}]])
