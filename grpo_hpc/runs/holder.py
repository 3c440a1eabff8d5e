"""Which process of which machine holds something of a run: noted in a file, so that others can see and signal it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from grpo_hpc.errors import GrpoHpcError
from grpo_hpc.files import write_atomically
from grpo_hpc.runs.records import read_record

_LAUNCHER = "launcher.json"
_BEAT_S = 30.0
_SILENT_S = 600.0
"""A launcher of another machine that has not touched its note for so long is taken for dead."""


@dataclass(frozen=True)
class Holder:
    """A process, told from later ones with the same number by when it was started.

    Attributes:
        born: clock ticks between the machine's boot and its start, field 22 of proc_pid_stat(5).
        boot: the kernel's name for that boot; empty in notes that do not have it.
    """

    host: str
    pid: int
    born: int
    boot: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def present(cls) -> Holder:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()) or 0, _boot())

    @property
    def here(self) -> bool:
        """It belongs to this machine."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """It still runs; only its own machine can tell."""
        return self.here and self.boot in ("", _boot()) and _born(self.pid) == self.born

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.alive():
            os.kill(self.pid, number)


class LauncherNote:
    """What the launcher of a local attempt leaves in its folder; the age of the file is its sign of life."""

    def __init__(self, attempt: Path) -> None:
        self._file, self._touched = attempt / _LAUNCHER, time.monotonic()

    def write(self) -> None:
        """Note this process."""
        write_atomically(self._file, json.dumps(asdict(Holder.present())) + "\n")

    def beat(self) -> None:
        """Say that this process is alive; may be called as often as one likes."""
        if time.monotonic() - self._touched >= _BEAT_S:
            self._touched = time.monotonic()
            with suppress(OSError):  # a folder that was moved away, a file system that stumbles
                os.utime(self._file)


def launcher_of(attempt: Path) -> Holder | None:
    """Who runs ``attempt``; None when nobody wrote it down."""
    try:
        return read_record(attempt / _LAUNCHER, Holder)
    except GrpoHpcError:
        return None


def silent_for(attempt: Path) -> float | None:
    """Seconds since the last sign of life of a launcher that is taken for dead therefore; None when it is not."""
    try:
        age = time.time() - (attempt / _LAUNCHER).stat().st_mtime
    except OSError:
        return None
    return age if age > _SILENT_S else None


def _born(pid: int) -> int | None:
    """When a process was started; None when there is none of that number, or it is a dead one nobody has collected."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
