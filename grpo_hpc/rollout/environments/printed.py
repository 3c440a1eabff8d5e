"""What environments print, line by line with the name of the episode, in a file of a bounded length."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from grpo_hpc.redaction import redacted

OF_AN_EPISODE = 64 * 2**10
"""Bytes of what one episode prints that are kept."""
OF_A_FILE = 32 * 2**20
"""Bytes of a file. Then it gets ``.1`` behind its name, in place of the one before, and a new one begins."""
_LONGEST_LINE = 8 * 2**10


class Printed:
    """Appends to the file at ``path``, which is made when something is printed."""

    def __init__(self, path: Path, of_an_episode: int = OF_AN_EPISODE, of_a_file: int = OF_A_FILE) -> None:
        self._path = path
        self._of_an_episode, self._of_a_file = of_an_episode, of_a_file
        self._kept: dict[str, int] = {}
        self._rest: dict[str, bytes] = {}

    def add(self, name: str, data: bytes) -> None:
        """``data`` was printed by the episode ``name``."""
        kept = self._kept.get(name, 0)
        if kept > self._of_an_episode:
            return
        room = self._of_an_episode - kept
        self._kept[name] = kept + len(data)
        *lines, rest = (self._rest.pop(name, b"") + data[:room]).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        if len(data) > room:
            lines, rest = [*lines, rest, b"(what more it printed is left out)"], b""
        self._rest[name] = rest
        self._write(name, lines)

    def end(self, name: str) -> None:
        """The episode prints no more."""
        self._kept.pop(name, None)
        self._write(name, filter(None, [self._rest.pop(name, b"")]))

    def _write(self, name: str, lines: Iterable[bytes]) -> None:
        text = "".join(f"{name} | {redacted(line.decode(errors='replace'))}\n" for line in lines)
        if text:
            with suppress(OSError):  # a full disk is no reason to end the episodes
                self._append(text)

    def _append(self, text: str) -> None:
        if self._path.is_file() and self._path.stat().st_size > self._of_a_file:
            self._path.replace(f"{self._path}.1")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)
