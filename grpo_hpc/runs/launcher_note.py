"""Which process of which machine started a local run: noted in its attempt, so that others can see and signal it."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from grpo_hpc.files import write_atomically

_FILE = "launcher.json"


@dataclass(frozen=True)
class Launcher:
    """A process, told from later ones with the same number by when it was started.

    Attributes:
        born: clock ticks between the machine's boot and its start, field 22 of proc_pid_stat(5).
    """

    host: str
    pid: int
    born: int

    @property
    def here(self) -> bool:
        """It belongs to this machine."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """It still runs; only its own machine can tell."""
        return self.here and _born(self.pid) == self.born

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.alive():
            os.kill(self.pid, number)


def note_launcher(attempt: Path) -> None:
    """Write down that this process runs ``attempt``."""
    launcher = Launcher(socket.gethostname(), os.getpid(), _born(os.getpid()) or 0)
    write_atomically(attempt / _FILE, json.dumps(asdict(launcher)) + "\n")


def launcher_of(attempt: Path) -> Launcher | None:
    """Who runs ``attempt``; None when nobody wrote it down."""
    try:
        return Launcher(**json.loads((attempt / _FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _born(pid: int) -> int | None:
    """When a process was started; None when there is none of that number, or it is a dead one nobody has collected."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])
