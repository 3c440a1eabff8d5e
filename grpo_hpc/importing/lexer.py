"""Cuts the text of a shell script into words and command ends, without giving them a meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from grpo_hpc.errors import ConfigError

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
ASSIGNMENT = re.compile(rf"({NAME})(\+?)=(\(?)")
_PLAIN = re.compile(rf"{NAME}|[0-9@*#?$!-]")
_REDIRECTION = re.compile(r"[0-9]*(?:<<<|<<-?|&>>?|>&|<&|>>|[<>])[ \t]*")


@dataclass(frozen=True)
class Piece:
    """Part of a word: literal text, or (``expand``) something that stands for a value.

    Values are split at blanks unless quoted; so is the text of a default, which is ``loose``.
    """

    text: str
    quoted: bool
    expand: bool = False
    loose: bool = False


@dataclass
class Raw:
    """A word before expansion; ``items`` are the words of an array assignment ``NAME=( ... )``."""

    pieces: list[Piece] = field(default_factory=list)
    items: list[Raw] | None = None
    end: bool = False  # not a word: the command ends here

    def literal(self) -> str | None:
        return None if any(p.expand or p.quoted for p in self.pieces) else "".join(p.text for p in self.pieces)


def lex(script: str) -> Iterator[tuple[int, Raw]]:
    """Line number and word, with an end marker after every simple command."""
    scanner = Scanner(script)
    while (item := scanner.next_item()) is not None:
        yield item
    yield scanner.line, Raw(end=True)


class Scanner:
    """Walks over the characters of a script."""

    def __init__(self, text: str, ends: str = " \t\n;&|()<>") -> None:
        self.text = text
        self.at = 0
        self.ends = ends  # characters that end a word
        self.heredocs: list[str] = []
        self.counted = (0, 1)

    @property
    def line(self) -> int:
        start, lines = self.counted
        self.counted = (self.at, lines + self.text.count("\n", start, self.at))
        return self.counted[1]

    def next_item(self) -> tuple[int, Raw] | None:
        """The next word or command end; None at the end of the script."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif char in " \t":
                self.at += 1
            elif char == "#":
                self._skip_to("\n")
            elif char == "\n":
                self.at += 1
                self._skip_heredocs()
                return self.line - 1, Raw(end=True)
            elif match := _REDIRECTION.match(self.text, self.at):
                self._redirection(match)
            elif char in ";&|()":
                self.at += 1
                return self.line, Raw(end=True)
            else:
                return self.line, self.word()
        return None

    def _redirection(self, match: re.Match[str]) -> None:
        """Step over ``> file`` and its like; note the end mark of a here-document."""
        self.at = match.end()
        if self.at < len(self.text) and self.text[self.at] not in "\n;|()":
            target = self.word()
            if match[0].strip().lstrip("0123456789") in ("<<", "<<-"):
                self.heredocs.append("".join(piece.text for piece in target.pieces))

    def _skip_heredocs(self) -> None:
        for mark in self.heredocs:
            while self.at < len(self.text):
                start = self.at
                self._skip_to("\n")
                line = self.text[start : self.at]
                self.at += 1
                if line.strip() == mark:
                    break
        self.heredocs = []

    def _skip_to(self, mark: str) -> None:
        found = self.text.find(mark, self.at)
        self.at = len(self.text) if found < 0 else found

    def word(self) -> Raw:
        """The word that begins here, or all that is left where nothing ends a word."""
        raw = Raw()
        literal = ""
        start = self.at

        def flush() -> None:
            nonlocal literal
            if literal:
                raw.pieces.append(Piece(literal, quoted=False))
            literal = ""

        while self.at < len(self.text) and self.text[self.at] not in self.ends:
            char = self.text[self.at]
            if char == "\\":
                literal += "" if self.text.startswith("\\\n", self.at) else self.text[self.at + 1 : self.at + 2]
                self.at += 2
            elif char in "'\"":
                flush()
                raw.pieces += self._quoted(char)
            elif char in "$`" and (value := self._expansion(quoted=False)):
                flush()
                raw.pieces.append(value)
            else:
                literal += char
                self.at += 1
        flush()
        if self.text.startswith("(", self.at) and ASSIGNMENT.fullmatch(self.text, start, self.at + 1):
            raw.items = self._array()
        return raw

    def _array(self) -> list[Raw]:
        opened = self.line
        self.at += 1
        items: list[Raw] = []
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif self.text[self.at] in " \t\n":
                self.at += 1
            elif self.text[self.at] == "#":
                self._skip_to("\n")
            elif self.text[self.at] in ";&|(<>":
                raise ConfigError(f"line {self.line}: {self.text[self.at]!r} cannot stand in an array")
            else:
                items.append(self.word())
        if self.at >= len(self.text):
            raise ConfigError(f"line {opened}: the bracket ( is never closed")
        self.at += 1
        return items

    def _quoted(self, quote: str) -> list[Piece]:
        """The pieces of a quoted string; an empty string is one empty piece."""
        opened = self.line
        self.at += 1
        pieces: list[Piece] = []
        literal = ""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == quote:
                self.at += 1
                return [*pieces, Piece(literal, quoted=True)]
            if quote == '"' and char == "\\" and self.text[self.at + 1 : self.at + 2] in set('$`"\\\n'):
                escaped = self.text[self.at + 1]
                literal += "" if escaped == "\n" else escaped
                self.at += 2
            elif quote == '"' and char in "$`" and (value := self._expansion(quoted=True)):
                pieces += [Piece(literal, quoted=True), value]
                literal = ""
            else:
                literal += char
                self.at += 1
        raise ConfigError(f"line {opened}: the quote {quote} is never closed")

    def _expansion(self, quoted: bool) -> Piece | None:
        """What begins at ``$`` or a backtick; None when the dollar sign stands for itself."""
        if self.text[self.at] == "`":
            end = self.text.find("`", self.at + 1) + 1
        elif self.text.startswith("$(", self.at):
            end = self._closing("(", ")")
        elif self.text.startswith("${", self.at):
            end = self._closing("{", "}")
        else:
            match = _PLAIN.match(self.text, self.at + 1)
            if match is None:
                return None
            end = match.end()
        if end <= 0:
            raise ConfigError(f"line {self.line}: {self.text[self.at : self.at + 2]} is never closed")
        piece = Piece(self.text[self.at : end], quoted, expand=True)
        self.at = end
        return piece

    def _closing(self, opening: str, closing: str) -> int:
        """Position after the bracket that closes the one at ``at + 1``; 0 when there is none."""
        depth = 0
        for position in range(self.at + 1, len(self.text)):
            depth += {opening: 1, closing: -1}.get(self.text[position], 0)
            if depth == 0:
                return position + 1
        return 0
