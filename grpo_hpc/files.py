"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[BinaryIO]:
    """A file written in place of ``path``: the old content or the new one is there at every moment, even after a crash.

    An error in between leaves the old content.

    Args:
        private: nobody but its owner may read it (0600).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str, private: bool = False) -> None:
    """Write ``text`` to ``path`` as :func:`replacing` does."""
    with replacing(path, private) as file:
        file.write(text.encode())


def link_atomically(link: Path, target: str) -> None:
    """Make ``link`` a symbolic link to ``target``, replacing an older link in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
