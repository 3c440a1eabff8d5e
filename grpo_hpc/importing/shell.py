"""Reads a shell script far enough to know its commands, and never runs anything.

Known: quotes, comments, line continuations, variables and arrays that the script assigns, ``${NAME:-default}``, integer
arithmetic, here-documents (skipped) and command separators. Whatever only a running shell can know, such as
``$(hostname)`` or a variable that nobody assigned, stays in a word as it is written and is listed in ``Word.open``. The
folder of the script itself is known: ``$(dirname "$0")``.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from grpo_hpc.errors import ConfigError
from grpo_hpc.importing.lexer import ASSIGNMENT, NAME, Piece, Raw, Scanner, lex

_BRACED = re.compile(rf"({NAME})(?:(\[[@*]\])|(:?[-=])(.*))?", re.DOTALL)
_SELF = r"\$(?:0|BASH_SOURCE|\{BASH_SOURCE(?:\[0\])?\})"
_DIRNAME = rf"\$\(dirname (?:-- )?(?:{_SELF}|\$\((?:realpath|readlink -f) {_SELF}\))\)"
_OWN_FOLDER = re.compile(rf"{_DIRNAME}|\$\(cd (?:-- )?{_DIRNAME}(?: &?>(?:&1)? ?/dev/null(?: 2>&1)?)? && pwd(?: -P)?\)")
"""The usual ways to say "the folder of this script", without quotes and with single blanks."""
_DEPTH = {"if": 1, "while": 1, "until": 1, "fi": -1, "done": -1, "esac": -1}
_COMMAND_FLAG = re.compile(r"-[a-z]*c")
_RESERVED = {"if", "then", "else", "elif", "do", "while", "until", "{", "}", "!", "fi", "done", "esac"}
_MOST = 1 << 21
"""Characters that all expansions of a script may make together; a script that people read makes thousands."""
_LONGEST_SUM = 1000  # characters
_COMMAND = 16  # characters that a command counts as
_DECLARING = {"export", "readonly", "declare", "local", "typeset"}


@dataclass(frozen=True)
class Word:
    """One word of a command after expansion.

    Attributes:
        text: the word; parts that are not known stand in it as they are written.
        open: those parts, such as ``("$(hostname)",)``; empty when the word is known.
    """

    text: str
    open: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """One simple command: its environment prefix, its words, and the line it begins on."""

    environment: dict[str, Word]
    words: tuple[Word, ...]
    line: int


@dataclass(frozen=True)
class Script:
    """The commands of a script and the variables it may or may not assign: those assigned inside ``if`` or a loop."""

    commands: list[Command]
    uncertain: set[str]


def read_script(script: str, variables: dict[str, str] | None = None, folder: str | None = None) -> Script:
    """The commands of ``script`` in the order they are written, with all branches and loop bodies, once each.

    Args:
        script: the text of a shell script.
        variables: values that are known from elsewhere; the script may assign others.
        folder: where the script lies, if it lies somewhere: what ``$(dirname "$0")`` and its like stand for.

    Raises:
        ConfigError: a quote or bracket is never closed, or the variables stand for more than a script can mean.
    """
    known = {name: [Word(value)] for name, value in (variables or {}).items()}
    try:
        return _Reader(known, folder, _Budget(_MOST)).run(script)
    except RecursionError:
        raise ConfigError("expansions are nested too deeply to be read") from None


class _Budget:
    """What may still be made; shared by all readers of one script."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, size: int) -> None:
        self.left -= size + 1
        if self.left < 0:
            raise ConfigError(f"its variables stand for more than {_MOST:,} characters; write the values out")


class _Reader:
    """Assigns variables and expands words, command by command."""

    def __init__(self, variables: dict[str, list[Word]], folder: str | None, budget: _Budget) -> None:
        self.variables, self.folder, self.budget = variables, folder, budget
        self.exported: dict[str, Word] = {}
        self.uncertain: set[str] = set()
        self.depth = 0

    def run(self, script: str) -> Script:
        found: list[Command] = []
        words: list[Raw] = []
        first = 1
        for line, raw in lex(script.replace("\r\n", "\n")):
            if not raw.end:
                first = first if words else line
                words.append(raw)
            elif words:
                found += self._simple(words, first)
                words = []
        return Script(found, self.uncertain)

    def _simple(self, raws: list[Raw], line: int) -> list[Command]:
        """Carry out the assignments of one simple command; the command, when there is more in it."""
        while raws and (keyword := raws[0].literal()) in _RESERVED:
            self.depth += _DEPTH.get(keyword, 0)
            raws = raws[1:]
        if raws and raws[0].literal() in ("for", "case"):
            self.depth += 1
        declared = bool(raws) and raws[0].literal() in _DECLARING
        prefix: dict[str, list[Word]] = {}
        rest = raws[1:] if declared else raws
        while rest and (assignment := self._assignment(rest[0], prefix)):
            prefix.update(assignment)
            rest = rest[1:]
        if declared or not rest:
            self.variables |= prefix
            self.uncertain |= set(prefix) if self.depth else set()
            if declared and raws[0].literal() == "export":
                names = {raw.literal() for raw in rest} | set(prefix)
                self.exported |= {name: found[0] for name in names if name and (found := self.variables.get(name))}
            return []
        self.budget.spend(len(self.exported) + _COMMAND)
        words = tuple(word for raw in rest for word in self._expand(raw.pieces))
        environment = self.exported | {name: value[0] for name, value in prefix.items() if value}
        return [Command(environment, words, line), *self._scripts(words, environment, line)] if words else []

    def _scripts(self, words: tuple[Word, ...], environment: dict[str, Word], line: int) -> list[Command]:
        """The commands inside ``bash -c '...'`` and ``eval ...``, read with the variables known so far."""
        texts = [word.text for word in words]
        if texts[0] == "eval":
            inner = " ".join(texts[1:])
        else:
            shell = next((n for n, text in enumerate(texts) if text.rpartition("/")[2] in ("bash", "sh")), len(texts))
            flag = next((n for n in range(shell + 1, len(texts) - 1) if _COMMAND_FLAG.fullmatch(texts[n])), None)
            if flag is None:
                return []
            inner = texts[flag + 1]
        self.budget.spend(len(self.variables))
        found = _Reader(dict(self.variables), self.folder, self.budget).run(inner).commands
        return [replace(c, environment=environment | c.environment, line=line + c.line - 1) for c in found]

    def _assignment(self, raw: Raw, prefix: dict[str, list[Word]]) -> dict[str, list[Word]] | None:
        """The name and value that ``raw`` assigns; None when it assigns nothing."""
        first = raw.pieces[0] if raw.pieces else Piece("", True)
        match = None if first.expand or first.quoted else ASSIGNMENT.match(first.text)
        if match is None:
            return None
        name, append = match[1], bool(match[2])
        before = {**self.variables, **prefix}.get(name, []) if append else []
        if raw.items is not None:
            self.budget.spend(len(before))
            return {name: [*before, *(word for item in raw.items for word in self._expand(item.pieces))]}
        pieces = [replace(first, text=first.text[match.end() :]), *raw.pieces[1:]]
        value = _joined(self._expand([replace(piece, quoted=True) for piece in pieces]))
        if before:
            value = Word(before[0].text + value.text, before[0].open + value.open)
        self.budget.spend(len(value.text))
        return {name: [value]}

    def _expand(self, pieces: list[Piece]) -> list[Word]:
        """The words that ``pieces`` become: unquoted values are split at blanks, ``${ARRAY[@]}`` gives many."""
        words: list[Word] = []
        joins = False  # whether the next part belongs to the last word
        for piece in self._with_defaults(pieces):
            splits = (piece.expand or piece.loose) and not piece.quoted
            for number, value in enumerate(self._values(piece)):
                loose = splits and not value.open
                joins = joins and not number and not (loose and value.text[:1].isspace())
                for part in _split(value) if splits else [value]:
                    last = words.pop() if joins else Word("")
                    words.append(Word(last.text + part.text, last.open + part.open))
                    self.budget.spend(len(words[-1].text))
                    joins = False
                if value.text or not loose:
                    joins = bool(words) and not (loose and value.text[-1:].isspace())
        return words

    def _with_defaults(self, pieces: list[Piece]) -> Iterator[Piece]:
        """``pieces``, with the default in the place of each ``${NAME:-default}`` that has no value."""
        for piece in pieces:
            match = _BRACED.fullmatch(piece.text[2:-1]) if piece.expand and piece.text.startswith("${") else None
            if match is None or match[3] is None or self._has_value(match):
                yield piece
            else:
                self.budget.spend(len(piece.text))
                inner = Scanner(match[4] or "", ends="").word().pieces
                yield from self._with_defaults(
                    [replace(part, quoted=part.quoted or piece.quoted, loose=True) for part in inner]
                )

    def _has_value(self, match: re.Match[str]) -> bool:
        known = self.variables.get(match[1])
        return known is not None and (bool(known[0].text) or not match[3].startswith(":"))

    def _values(self, piece: Piece) -> list[Word]:
        if not piece.expand:
            return [Word(piece.text)]
        source = piece.text
        if self.folder is not None and _OWN_FOLDER.fullmatch(" ".join(re.sub("[\"']", "", source).split())):
            return [Word(self.folder)]
        if source.startswith("$((") and source.endswith("))"):
            return [self._arithmetic(source)]
        inner = source[2:-1] if source.startswith("${") else source[1:]
        match = _BRACED.fullmatch(inner)
        if match is None or source[0] == "`" or source.startswith("$("):
            return [Word(source, (source,))]
        known = self.variables.get(match[1])
        if known is None:
            return [Word(source, (source,))]
        return known if match[2] else known[:1]

    def _arithmetic(self, source: str) -> Word:
        """The value of ``$((...))`` when it holds whole numbers and known variables only."""
        text = re.sub(r"\$\{(\w+)\}|\$(\w+)", r"\1\2", source[3:-2])
        text = re.sub(NAME, lambda m: self.variables.get(m[0], [Word(m[0])])[0].text, text)
        value = _whole_number(text.strip())
        return Word(source, (source,)) if value is None else Word(str(value))


_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


def _whole_number(text: str) -> int | None:
    """The value of a sum, difference, product, quotient or remainder of whole numbers; None for anything else."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return bounded(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return bounded(_OPERATIONS[type(node.op)](value(node.left), value(node.right)))
        raise ValueError

    def bounded(number: int) -> int:
        if abs(number) >= 2**63:  # where a shell's numbers begin again from below
            raise ValueError
        return number

    if not re.fullmatch(rf"[-+*/%() \t0-9]{{1,{_LONGEST_SUM}}}", text):
        return None
    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _joined(words: list[Word]) -> Word:
    return Word(" ".join(word.text for word in words), tuple(part for word in words for part in word.open))


def _split(word: Word) -> list[Word]:
    return [word] if word.open else [Word(part) for part in word.text.split()]
