"""Reading the logs of a run while they grow, over every new start of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.errors import ConfigError
from grpo_hpc.runs.attempts import Attempt
from grpo_hpc.runs.log_ends import start_of_last
from grpo_hpc.runs.run_dir import RunDir, short_path
from grpo_hpc.runs.run_logs import attempt_of, main_log, rank_log, server_log
from grpo_hpc.runs.standing import LIVE, standing

_POLL_S = 0.3
_BLOCK = 2**20
_LOOK_S = 5.0  # how often Slurm is asked whether the run is over, while its logs are silent


@dataclass(frozen=True)
class LogLine:
    """One line of a log, without its end.

    Attributes:
        attempt: number of the start; None for what Slurm's job wrote before the first.
    """

    attempt: int | None
    file: str
    line: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


@dataclass(frozen=True)
class Wanted:
    """Which log somebody wants to read; None: the newest start, and the log that tells most."""

    attempt: int | None = None
    rank: int | None = None
    server: int | None = None


def read_log(run_dir: RunDir, wanted: Wanted, last: int | None = None) -> Iterator[LogLine]:
    """The lines of one log, or its ``last`` ones.

    Raises:
        ConfigError: there is no such log.
    """
    attempt, path = _choose(run_dir, wanted)
    if path is None:
        raise ConfigError(f"{short_path(run_dir.path)} has no log yet", _why_silent(run_dir))
    return _Reader(attempt, path, last).rest()


def follow_log(run_dir: RunDir, wanted: Wanted, last: int | None = None) -> Iterator[LogLine | None]:
    """Lines as they come, until the run, or the start that is wanted, is over. None: nothing new for a moment.

    Args:
        last: how many of the lines that are there already.

    Raises:
        ConfigError: there is no such start, or the run was never started.
    """
    if standing(run_dir).state == "prepared":
        raise ConfigError(f"{short_path(run_dir.path)} has no log yet", _why_silent(run_dir))
    readers: dict[Path, _Reader] = {}
    present: _Reader | None = None
    for attempt, path in _choices(run_dir, wanted):
        first = not readers
        if path is not None and (present is None or path != present.path):
            yield from present.rest() if present else ()
            present = readers.get(path) or _Reader(attempt, path, last if first else None)
            readers[path] = present
        silent = True
        for line in present.new() if present else ():
            silent = False
            yield line
        if silent:
            yield None
    yield from present.rest() if present else ()


class _Reader:
    """Reads a growing file line by line, in blocks; what is no UTF-8 is shown as question marks.

    Args:
        last: how many of the lines that are there already; all when absent.
    """

    def __init__(self, attempt: Attempt | None, path: Path, last: int | None) -> None:
        self.path = path
        self._number = attempt.number if attempt else None
        self._offset = start_of_last(path, last) if last is not None else 0

    def new(self) -> Iterator[LogLine]:
        """Lines that were finished since the last call; one longer than a block comes in parts."""
        with self.path.open("rb") as file:
            self._offset = min(self._offset, os.fstat(file.fileno()).st_size)  # it may have been cut in its middle
            while file.seek(self._offset) >= 0 and (block := file.read(_BLOCK)):
                whole = block.rfind(b"\n") + 1 or (len(block) if len(block) == _BLOCK else 0)
                if not whole:
                    return
                self._offset += whole
                yield from self._lines(block[:whole])

    def rest(self) -> Iterator[LogLine]:
        """All that is left, with a last line that has no end."""
        yield from self.new()
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(_BLOCK)
        self._offset += len(data)
        yield from self._lines(data)

    def _lines(self, data: bytes) -> list[LogLine]:
        text = data.decode("utf-8", errors="replace")
        parts = text.removesuffix("\n").split("\n") if text else []
        return [LogLine(self._number, str(self.path), part) for part in parts]


def _choices(run_dir: RunDir, wanted: Wanted) -> Iterator[tuple[Attempt | None, Path | None]]:
    """What to read now, again and again until the run is over; the last answer is given after that was seen."""
    looked = float("-inf")
    while True:
        over = False
        if time.monotonic() - looked >= _LOOK_S:
            over = _over(run_dir, wanted)
            looked = time.monotonic()
        yield _choose(run_dir, wanted)
        if over:
            return
        time.sleep(_POLL_S)


def _choose(run_dir: RunDir, wanted: Wanted) -> tuple[Attempt | None, Path | None]:
    attempt = attempt_of(run_dir, wanted.attempt)
    if attempt is not None and wanted.rank is not None:
        return attempt, rank_log(run_dir, attempt, wanted.rank)
    if attempt is not None and wanted.server is not None:
        return attempt, server_log(run_dir, attempt, wanted.server)
    named = wanted.rank is not None or wanted.server is not None
    return attempt, None if named else main_log(run_dir, attempt)


def _over(run_dir: RunDir, wanted: Wanted) -> bool:
    attempt = attempt_of(run_dir, wanted.attempt) if wanted.attempt is not None else None
    return (attempt is not None and attempt.state != "running") or standing(run_dir).state not in LIVE


def _why_silent(run_dir: RunDir) -> str:
    found = standing(run_dir)
    if found.state == "prepared":
        return f"It was never started; start it with `grpo-hpc resume {short_path(run_dir.path)}`."
    return f"It is {found.state}{': ' + found.detail if found.detail else ''}. `-f` waits for the log."
