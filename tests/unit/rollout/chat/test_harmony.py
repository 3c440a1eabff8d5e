"""The messages of a turn of gpt-oss: thoughts, words, calls; whatever else it is, nothing of it is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.rollout.chat.harmony import read_harmony, split_harmony

THOUGHT = "<|channel|>analysis<|message|>Let me add.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 2}'
TEMPLATES_CALL = ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}'


@pytest.mark.parametrize(
    ("text", "thoughts", "words", "calls"),
    [
        ("<|channel|>final<|message|>It is 5.", "", "It is 5.", []),
        (THOUGHT + "<|channel|>final<|message|>It is 5.<|return|>", "Let me add.", "It is 5.", []),
        (THOUGHT + CALL, "Let me add.", "", [("add", '{"a": 2}')]),
        (TEMPLATES_CALL + "<|call|>", "", "", [("add", '{"a": 2}')]),
        (THOUGHT + TEMPLATES_CALL, "Let me add.", "", [("add", '{"a": 2}')]),
        (
            "<|channel|>commentary<|message|>I add.<|end|><|start|>assistant" + CALL,
            "",
            "I add.",
            [("add", '{"a": 2}')],
        ),
        ("<|channel|>analysis<|message|>Let me", "Let me", "", []),
        ("no message at all", "", "no message at all", []),
        ("", "", "", []),
    ],
)
def test_a_turn(text, thoughts, words, calls):
    first, rest = split_harmony(text)
    assert (first, *read_harmony(rest)) == (thoughts, words, calls)


MARKS = [f"<|{name}|>" for name in ("channel", "message", "end", "start", "call", "constrain")]
PIECES = st.sampled_from([*MARKS, "analysis", "final", "assistant", " to=functions.add", "to=", "words", "<", "\n"])


@given(st.lists(PIECES, max_size=12))
def test_words_are_never_lost(pieces):
    first, rest = split_harmony("".join(pieces))
    told, calls = read_harmony(rest)
    found = first + told + "".join(words for _, words in calls)
    behind = "".join(pieces).rpartition("<|message|>")[2]
    assert found.count("words") >= behind.count("words")


def test_a_long_turn_is_read_once():
    """A search that began anew at every letter would take hours."""
    assert split_harmony("<" * 500_000) == ("", "<" * 500_000)
    assert len(split_harmony("to=functions. <|channel|>" * 50_000)[1]) == 25 * 50_000
