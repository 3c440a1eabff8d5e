"""Which names and values are secrets, and texts without them.

A process knows the values of variables that ``GRPO_HPC_SECRETS`` names (the script of a job names those of the secrets
file and of ``inherit`` there), of other variables whose name says so, and what it read from files itself
(:func:`keep_secret`). Whatever people may read of a failure goes through :func:`redacted` where it is made.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote, quote_plus

SECRET_NAMES = "GRPO_HPC_SECRETS"
"""The variable with the names, with blanks between them, of variables whose values are secret."""
SHORTEST = 6
"""Characters of the shortest value that is looked for in texts: shorter ones are parts of ordinary words."""
HIDDEN = "(secret)"

_WORDS = (
    *("TOKEN", "SECRETS?", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "PWD", "PAT", "JWT", "CREDENTIALS?", "COOKIES?"),
    *("DSN", "AUTH", "AUTHORIZATION", "BEARER", "WEBHOOK(?:_URL)?", "APIKEYS?"),
    "(?:API|ACCESS|SECRET|PRIVATE|AUTH|SIGNING|ENCRYPTION|MASTER|LICEN[CS]E|SSH)_KEYS?",
)
_SECRET = re.compile(rf"(?:^|_)(?:{'|'.join(_WORDS)})(?:_ID|_?\d+)?$", re.IGNORECASE)
_VARIABLE_KEY = re.compile(r"[A-Z0-9_]*_KEY")  # of the environment; a parameter such as answer_key is a column
_OF_TEXTS = "BOS|EOS|PAD|UNK|SEP|CLS|MASK|STOP|START|END|SPECIAL|THINK|IMAGE|VIDEO|NEW|NEXT|LAST|FIRST|PER"
_ORDINARY = re.compile(rf"(?-i:PWD|OLDPWD)|(?:.*_)?(?:{_OF_TEXTS})_TOKEN", re.IGNORECASE)
_NO_SECRET = re.compile(r"\s*|true|false|yes|no|on|off|none|null|[-+]?\d{1,5}(\.\d*)?|\(secret\)", re.IGNORECASE)
_REFERENCES = re.compile(r"(\$\{?[A-Za-z_][A-Za-z0-9_]*\}?)+")
_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]{0,256}:([^/\s@'\"]{1,512})(?=@)")
_ASSIGNED = re.compile(r"""(?<![\w-])(([A-Za-z_][\w-]*)(?:=|["']\s*:\s*)["']?)([^\s"',}&;]+)""")
_GIVEN = re.compile(
    r"""(?:--([A-Za-z_][\w-]*)[ \t]+|^[ \t]*([A-Za-z_][\w-]*)[ \t]*:[ \t]+)["']?([^\s"',}&;]+)""", re.MULTILINE
)
_IN_HEADER = re.compile(r"\b(Bearer|Basic)(\s+)[A-Za-z0-9._~+/=-]{8,}")
_kept: set[str] = set()


def looks_secret(name: str) -> bool:
    """Whether the variable or parameter ``name`` holds a secret, as far as its name tells."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-.\s]", "_", name)
    found = _SECRET.search(words) or _VARIABLE_KEY.fullmatch(name)
    return bool(found) and not _ORDINARY.fullmatch(words)


def holds_secret(name: str, value: Any) -> bool:
    """Whether ``value`` is a secret: the name says so, or it is a URL with a password.

    Switches, numbers and what only names a variable, as in ``$HF_TOKEN``, are none.
    """
    text = str(value)
    if any(not _REFERENCES.fullmatch(password) for password in _IN_URL.findall(text)):
        return True
    return looks_secret(name) and not (_NO_SECRET.fullmatch(text) or _REFERENCES.fullmatch(text))


def secret_paths(values: Any, path: str = "", name: str = "") -> Iterator[str]:
    """Dotted paths of the secrets in nested mappings and lists, which lie at ``path`` under ``name``."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            inner = name if isinstance(values, list) or looks_secret(name) else str(key)
            yield from secret_paths(value, f"{path}.{key}" if path else str(key), inner)
    elif holds_secret(name, values):
        yield path


def secrets_in(text: str) -> Iterator[str]:
    """Values in a script or document that are secrets by the names before them, and passwords in its URLs."""
    named = [(name, value) for _, name, value in _ASSIGNED.findall(text)]
    named += [(flag or key, value) for flag, key, value in _GIVEN.findall(text)]
    yield from (value for name, value in named if holds_secret(name, value))
    yield from _IN_URL.findall(text)


def keep_secret(value: str) -> str:
    """Remember ``value`` for :func:`redacted`, and return it."""
    if len(value.strip()) >= SHORTEST:
        _kept.add(value)
    return value


def redacted(text: str) -> str:
    """``text`` without known secrets, however they are written, without passwords in URLs and keys in headers."""
    for pattern in _patterns(tuple(sorted({*_kept, *_of_environment()}))):
        text = pattern.sub(HIDDEN, text)
    text = _ASSIGNED.sub(lambda found: found[1] + (HIDDEN if holds_secret(found[2], found[3]) else found[3]), text)
    text = _IN_URL.sub(HIDDEN, text)
    return _IN_HEADER.sub(rf"\1\2{HIDDEN}", text)


def redacted_all(values: Any) -> Any:
    """:func:`redacted` in nested mappings, lists and tuples."""
    if isinstance(values, str):
        return redacted(values)
    if isinstance(values, dict):
        return {redacted_all(key): redacted_all(value) for key, value in values.items()}
    return type(values)(map(redacted_all, values)) if isinstance(values, list | tuple) else values


def redact_output() -> None:
    """From now on what this process prints is :func:`redacted`, also the traceback that it may end with."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _RedactedOutput):
            stream.flush()
            setattr(sys, name, _RedactedOutput(stream))


class _RedactedOutput(io.TextIOWrapper):
    """Text that is redacted, one write at a time."""

    def __init__(self, stream: Any) -> None:
        through = stream.write_through
        super().__init__(stream.buffer, stream.encoding, stream.errors, line_buffering=True, write_through=through)
        self._before = stream  # it would close the buffer with its last reference

    def write(self, text: str) -> int:
        super().write(redacted(text))
        return len(text)


def _of_environment() -> Iterator[str]:
    named = set(os.environ.get(SECRET_NAMES, "").split())
    for name, value in os.environ.items():
        if name in named or (looks_secret(name) and not _NO_SECRET.fullmatch(value) and not os.access(value, os.F_OK)):
            yield value
        else:
            yield from _IN_URL.findall(value)


@lru_cache(maxsize=8)
def _patterns(values: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    forms = {form for value in values for form in _forms(value) if len(form) >= SHORTEST}
    words = sorted(forms, key=len, reverse=True)
    return (re.compile("|".join(map(re.escape, words))),) if words else ()


def _forms(value: str) -> Iterator[str]:
    """How ``value`` may be written in a text: as it is, in quotes of Python and JSON, and in a URL."""
    for text in {value.strip(), *(line.strip() for line in value.splitlines())}:
        yield from (text, " ".join(text.split()), json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        for shown in (repr(text)[1:-1], ascii(text)[1:-1], repr(text.encode(errors="replace"))[2:-1]):
            yield from (shown, shown.replace("'", "\\'"))
        for code in (quote, partial(quote, safe=""), quote_plus):
            coded = code(text, errors="replace")
            yield from (coded, re.sub("%..", lambda found: found[0].lower(), coded))
