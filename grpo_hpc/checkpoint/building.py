"""A folder that is whole or absent: it is built beside its place, by one process at a time, and then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from grpo_hpc.errors import CheckpointError

JOURNAL = "journal.jsonl"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def building(folder: Path) -> Iterator[tuple[Path, TextIO]]:
    """``NAME.partial``, in which ``folder`` is made, with its journal; without an error it becomes ``folder``.

    The journal is open for appending and locked (flock(2), also between the nodes of a shared file system), so a second
    process can neither clear the folder nor go on from it. What a killed process left there is still there.

    Raises:
        CheckpointError: ``folder`` exists, or another process is building it.
    """
    _require_new(folder)
    place = folder.with_name(folder.name + ".partial")
    place.mkdir(parents=True, exist_ok=True)
    with (place / JOURNAL).open("a+", encoding="utf-8") as journal:
        if not _locked(journal) or not _is_at(journal, place / JOURNAL):
            raise CheckpointError(
                f"another process is building {folder} at this moment",
                "Wait for it, or choose another name. If it is ended, the same command goes on from what it has done.",
            )
        if folder.exists():  # finished by another process in between
            shutil.rmtree(place)
            _require_new(folder)
        yield place, journal
        place.rename(folder)
        (folder / JOURNAL).unlink()


def _require_new(folder: Path) -> None:
    if folder.exists():
        raise CheckpointError(f"{folder} exists already", "Choose another name, or remove it.")


def _locked(journal: TextIO) -> bool:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        said = "has no locks: nothing keeps a second process from the same folder"
        print(f"the file system of {journal.name} {said}", file=sys.stderr)
    return True


def _is_at(journal: TextIO, path: Path) -> bool:
    """It was not taken away between its opening and its lock."""
    try:
        return os.path.samestat(os.fstat(journal.fileno()), path.stat())
    except FileNotFoundError:
        return False
