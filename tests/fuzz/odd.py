"""Strategies for what people and damaged disks write: odd scalars, odd text, broken bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

_BOMB = "[&a [x, x], &b [*a, *a], &c [*b, *b], &d [*c, *c], &e [*d, *d], &f [*e, *e], &g [*f, *f], &h [*g, *g], *h]"
SCALARS = (
    *(
        "",
        "~",
        "null",
        "true",
        "no",
        "0",
        "-1",
        "010",
        "0x10",
        "1_000",
        "1e3",
        "1e400",
        "1e-400",
        ".inf",
        "-.inf",
        ".nan",
    ),
    *("12:00:00", "2026-11-29", "9" * 20, "9" * 309, "9" * 5000, "-" + "9" * 5000, "1" + "0" * 310, "1." + "0" * 5000),
    *(
        '!!int ""',
        '!!int "x"',
        "!!timestamp x",
        "!!float x",
        "!!bool maybe",
        "!!binary x",
        "!!set {a, b}",
        "!!omap [a]",
    ),
    *("!!python/object/apply:os.system [true]", "!own x", "!!str 5", "!!null x", "!!map [1]", "!!seq {a: 1}"),
    *("&a [*a]", "&a {b: *a}", "*nowhere", "<<", "{<<: [1, 2]}", "{<<: {lr: 1}}", "{? [a, b] : c}", "{1: 2, true: 3}"),
    *("[" * 600, "[" * 600 + "]" * 600, "{a: " * 300, _BOMB, "[]", "{}", "[[]]", "[1, a, null]", "{a: {b: [c]}}"),
    *(
        '"\\0"',
        '"\\x85"',
        '"\\u2028"',
        '"\\ud800"',
        '"\\x1b[31m"',
        '"a\\nb"',
        "'",
        '"',
        "|",
        ">",
        "- a",
        "a: b",
        "#",
        "@",
        "`",
    ),
    *(
        "x" * 300,
        "é",
        "\x85",
        "\x7f",
        "\x00",
        "\ufeff",
        "\u202e",
        "$HOME",
        "${NO_SUCH}",
        "~nosuchuser/x",
        "/dev/zero",
        ".",
        "/",
    ),
    *("--help", "-", "a/../b", "{{ 7 * 7 }}", "%s", "[red]x[/red]", "[/]", "a b", "a;b", "$(id)", "`id`", "a|b", "*"),
)
"""YAML for one value, each of which broke something somewhere."""

TEXTS = st.text(max_size=20) | st.text(
    alphabet="ab \\\"'$`(){}[]<>|&;*?!#~=:,.-_\n\t\r\x00\x1b\x85\u2028é", max_size=20
)
NUMBERS = (
    st.integers()
    | st.integers(-3, 70)
    | st.sampled_from([10**n for n in (3, 4, 5, 6, 7, 9, 12, 18, 20, 310)])
    | st.integers(0, 70).map(lambda n: 2**n)
)
FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 2)


def in_argument(text: str) -> str:
    """``text`` as it can be an argument of a command: without NUL and in UTF-8."""
    return text.replace("\0", "").encode(errors="ignore").decode()


def in_json(values: SearchStrategy[Any]) -> SearchStrategy[str]:
    return values.map(lambda value: json.dumps(value, default=str))


def yaml_values(*more: str) -> SearchStrategy[str]:
    """YAML text of one value in flow style."""
    simple = st.sampled_from([*SCALARS, *more]) | NUMBERS.map(str) | FLOATS.map(repr) | in_json(TEXTS)
    lists = st.lists(simple, max_size=3).map(lambda items: f"[{', '.join(items)}]")
    return simple | lists | st.tuples(simple, simple).map(lambda pair: f"{{{pair[0]}: {pair[1]}}}")


JSON_VALUES: SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | FLOATS
    | TEXTS
    | st.sampled_from(["bfloat16", "x" * 300, "../../x", "/etc/passwd"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

Edit = tuple[str, float, bytes]
EDITS: SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(["cut", "put", "flip", "end", "twice"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(max_size=8)
        | st.sampled_from([b"\0" * 4096, b"\xff\xfe", b"\r\n", b"NaN", b"1e999", b"[" * 3000, b"-1"]),
    ),
    max_size=3,
)
"""Damage to bytes: what is done, where (a share of the length), and with what."""


def damaged(content: bytes, edits: list[Edit]) -> bytes:
    """``content`` after ``edits``."""
    for kind, share, piece in edits:
        at = int(share * len(content))
        content = _DAMAGE[kind](content, at, piece)
    return content


def _flipped(content: bytes, at: int, piece: bytes) -> bytes:
    bit = 1 << (piece[0] % 8 if piece else 0)
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :] if content else content


_DAMAGE: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "cut": lambda content, at, piece: content[:at] + content[at + max(1, len(piece)) :],
    "put": lambda content, at, piece: content[:at] + piece + content[at:],
    "flip": _flipped,
    "end": lambda content, at, piece: content[:at],
    "twice": lambda content, at, piece: content + content[at:],
}


@st.composite
def changed_json(draw: Any, value: Any) -> Any:
    """``value``, a JSON document, with one to three of its parts replaced, removed or added."""
    for _ in range(draw(st.integers(1, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: Any, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        what = draw(st.integers(0, 9))
        rest = {name: item for name, item in value.items() if name != key}
        if what == 0:
            return rest
        if what == 1:
            return {**rest, draw(TEXTS): value[key]}
        return {**value, key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _changed(draw, value[at]), *value[at + 1 :]]
    if type(value) is int and draw(st.booleans()):
        return draw(st.sampled_from([value * 2, max(1, value // 2), value + 1, 1]))
    return draw(JSON_VALUES)
