"""Words and lines of bash: the one place where a text of somebody becomes part of a script."""

from __future__ import annotations

from shlex import quote

from grpo_hpc.errors import ConfigError


class Bash(str):
    """Text that is bash already: ours, or quoted. Every other text is taken literally."""

    __slots__ = ()


def word(*parts: str) -> Bash:
    """One word, of all ``parts`` behind each other.

    Raises:
        ConfigError: a part holds what no program can be given.
    """
    return Bash("".join(part if isinstance(part, Bash) else quote(_sayable(part)) for part in parts))


def line(*words: str) -> Bash:
    """``words`` with blanks between them.

    Raises:
        ConfigError: as for :func:`word`.
    """
    return Bash(" ".join(map(word, words)))


def _sayable(text: str) -> str:
    try:
        valid = b"\0" not in text.encode()
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ConfigError(f"{text!r} holds a character that no program can be given", "Leave it out.")
    return text
