"""The log of one process: its output goes there, and it stays of a bounded length."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

MOST = 64 * 2**20
"""Bytes of a log. Of a longer one the middle is left out."""
_LOOK_S = 1.0


def redirect_output(path: Path, most: int = MOST) -> None:
    """From now on standard output and standard error of this process are appended to ``path``.

    Works on file descriptors, so that compiled libraries and child processes write there too.

    Args:
        most: as in :func:`shorten`, which a thread calls.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    threading.Thread(target=_keep_short, args=(path, most), daemon=True).start()


def shorten(path: Path, most: int = MOST) -> None:
    """Of a log that is longer than ``most`` bytes keep a quarter of that from either end, whole lines.

    Who appends goes on behind the end that is kept; what comes in the moment between may be lost.
    """
    size = path.stat().st_size
    if size <= most:
        return
    with path.open("r+b") as log:
        first = log.read(most // 4).rpartition(b"\n")[0]
        log.seek(size - most // 4)
        last = log.read(most // 2).partition(b"\n")[2]
        said = f"\n... {size - len(first) - len(last):,} bytes are left out: a log has {most:,} at most ...\n"
        log.seek(len(first))
        log.write(said.encode() + last)
        log.truncate()


def _keep_short(path: Path, most: int) -> None:
    while True:
        with suppress(OSError):
            shorten(path, most)
        time.sleep(_LOOK_S)
