"""Standard output and standard error as every command has them: what nobody takes does not end a command.

A command that queues a job has done so whether or not somebody reads about it: a pipe that was closed, a disk that is
full, a terminal without the character cost text and nothing else.
"""

from __future__ import annotations

import errno
import io
import locale
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_NOBODY_READS = (errno.EPIPE, errno.EBADF)


class _Outlet(io.RawIOBase):
    """Writes to a descriptor; after the first failure, which is kept, everything is dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.problem: OSError | None = None

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        while self.problem is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.problem = error
        return len(data)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard output and standard error that never raise, in UTF-8 surroundings.

    Raises:
        OSError: at the end, where standard output could not be written although somebody reads it.
    """
    _fill_closed()
    _use_utf8()
    before = sys.stdout, sys.stderr
    outlets = [_replaced(name) for name in ("stdout", "stderr")]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
    problem = outlets[0] and outlets[0].problem
    if problem and problem.errno not in _NOBODY_READS:
        raise OSError(problem.errno, problem.strerror, "standard output")


def _replaced(name: str) -> _Outlet | None:
    """Put a lasting stream in the place of the process's own; one that a test or a caller put there stays."""
    own: TextIO | None = getattr(sys, name)
    if own is None or own is not getattr(sys, f"__{name}__"):
        return None
    own.flush()
    outlet = _Outlet(own.fileno())
    unknown = "replace" if name == "stdout" else "backslashreplace"
    lines = outlet.isatty() or name == "stderr"
    wrapper = io.TextIOWrapper(io.BufferedWriter(outlet), own.encoding, unknown, line_buffering=lines)
    setattr(sys, name, wrapper)
    return outlet


def _fill_closed() -> None:
    """A descriptor that is closed would be given to the next file that is opened, and children would print into it."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            stream = os.fdopen(descriptor, "w" if descriptor else "r")
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _use_utf8() -> None:
    """Files of a run are UTF-8 whatever the terminal speaks, here and in the processes of a run."""
    if sys.flags.utf8_mode or locale.getencoding().lower().replace("-", "") == "utf8":
        return
    os.environ.setdefault("PYTHONUTF8", "1")
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        return
