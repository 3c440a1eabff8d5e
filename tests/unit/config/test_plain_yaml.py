"""What YAML may hold: the right value, or a mistake with its place; never a surprise of the parser's."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.config.document import read_yaml
from grpo_hpc.config.plain_yaml import dump_yaml, parse, parse_value
from grpo_hpc.errors import ConfigError

BOMB = (
    "[" + ", ".join(f"&{b} [*{a}, *{a}, *{a}]" for a, b in zip("abcdefghijklmn", "bcdefghijklmno", strict=True)) + "]"
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            'x: !!int ""',
            "the tag tag:yaml.org,2002:int is not read; write the value itself",
        ),
        ("x: !!timestamp x", "the tag"),
        ("x: !own y", "the tag !own"),
        ("x: " + "9" * 5000, "a number of 5,000 characters; it may have 100"),
        ("x: 1." + "0" * 200, "a number of 202 characters"),
        ("x: " + "[" * 600 + "]" * 600, "more than 40 lists or mappings"),
        ("x: " + "{a: " * 600, "more than 40 lists or mappings"),
        ("x: &a [1, *a]", "the alias *a stands within what it stands for (line 1, column 11)"),
        ("x: &a {b: {c: *a}}", "the alias *a stands within"),
        ("a: &a [x, x, x]\nb: " + BOMB.replace("*a", "*a", 1), "more than 5,000 values, aliases counted"),
        ("a: b\n" * 20_000, "more than 5,000 values"),
        ('x: "a\\0b"', "the control character U+0000 cannot stand in a text (line 1, column 4)"),
        ('x: "\\e[31m"', "the control character U+001B"),
        ('"\\0": 1', "U+0000"),
        ('x: "\\ud800"', "U+D800"),
        ("x: \x7f", "the character U+007F cannot stand in it (character 4)"),
        ("x: 1\n---\ny: 2", "found another document"),
        ("{[a]: b}", "unhashable key"),
    ],
)
def test_mistakes_have_a_place(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(text)


def test_aliases_stand_for_values():
    assert parse_value("{a: &x [1, 2], b: *x}") == {"a": [1, 2], "b": [1, 2]}


def test_what_is_written_holds_no_aliases():
    shared = [1, 2]
    assert dump_yaml({"a": shared, "b": shared}) == "a:\n- 1\n- 2\nb:\n- 1\n- 2\n"


WELCOME = st.text(
    st.characters(
        exclude_categories=["Cs"],
        exclude_characters=[
            *map(chr, [*range(9), 11, 12]),
            *map(chr, range(14, 32)),
            *map(chr, range(0x7F, 0x85)),
            *map(chr, range(0x86, 0xA0)),
        ],
    )
)


@given(st.recursive(WELCOME | st.integers(-(10**98), 10**98) | st.floats(allow_nan=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(WELCOME, inner), max_leaves=8))  # fmt: skip
def test_what_is_written_is_read_back(value):
    assert parse_value(dump_yaml({"key": value})) == {"key": value}


@given(
    st.text(
        alphabet=[
            "\x85",
            "\u2028",
            "\u2029",
            "\ufeff",
            "\r",
            "\n",
            "\t",
            " ",
            "a",
            "'",
            '"',
            "#",
            ":",
            "é",
            "\U0001f600",
        ]
    )
)
def test_ends_of_lines_of_other_worlds_are_read_back(text):
    assert parse_value(dump_yaml({"key": text})) == {"key": text}


@given(st.text(alphabet="{}[],:&*!|>'\"%@`#?-~ \n\ta1.e_\x00\x85") | st.text())
def test_any_text_is_read_or_refused(text):
    try:
        parse(text)
    except ValueError as error:
        assert str(error)


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="cannot be read: it is no regular file"):
            read_yaml(path, "run file", "name: x")


def test_what_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"it is larger than 262,144 bytes"):
        read_yaml(tmp_path / "large.yaml", "run file", "name: x")
