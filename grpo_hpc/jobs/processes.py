"""A child process whose whole family ends with the launcher.

torchrun puts every rank in a session of its own, so killing its process group misses the ranks. Here the launcher
becomes the one that orphans are handed to (``PR_SET_CHILD_SUBREAPER``), so every descendant can be found in ``/proc``;
and the direct child gets SIGTERM from the kernel when the launcher dies (``PR_SET_PDEATHSIG``). See prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def start_family(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, so that a Ctrl-C in the terminal does not reach it.

    Args:
        log: file that standard output and standard error are appended to.
    """
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    launcher = os.getpid()

    def tie_to_launcher() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != launcher:  # the launcher died before the line above
            os._exit(1)

    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=tie_to_launcher,
        )


def end_family(before: set[int], grace_s: float = 0.0) -> None:
    """End every descendant of this process that is not in ``before``, and wait until they are gone.

    Args:
        grace_s: seconds between SIGTERM and SIGKILL; 0 kills at once.
    """
    deadline = time.monotonic() + grace_s
    if grace_s:
        _signal_all(descendants() - before, signal.SIGTERM)
    while left := descendants() - before:
        if time.monotonic() >= deadline:
            _signal_all(left, signal.SIGKILL)
        _reap(left)
        time.sleep(0.02)


def descendants() -> set[int]:
    """Process ids of all living descendants of this process."""
    parent_of = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                state, parent = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:2]
                parent_of[int(entry.name)] = (int(parent), state)
    found: set[int] = set()
    front = {os.getpid()}
    while front:
        front = {pid for pid, (parent, _) in parent_of.items() if parent in front}
        found |= front
    return {pid for pid in found if not _waits_for_another(parent_of[pid])}


def _waits_for_another(process: tuple[int, str]) -> bool:
    """A dead process that a parent other than this one has yet to collect: no signal can do more."""
    parent, state = process
    return state == "Z" and parent != os.getpid()


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _reap(pids: set[int]) -> None:
    """Collect those of ``pids`` that ended and are this process's own children, as adopted orphans are."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
