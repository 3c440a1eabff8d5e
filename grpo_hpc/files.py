"""Finding files at home, reading those that people name, and writing them so that no reader sees half of one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from grpo_hpc.errors import ConfigError, GrpoHpcError

_POINTER = b"version https://git-lfs"


def with_home(path: str | Path) -> Path:
    """``path`` with the home folder that a leading ``~`` or ``~user`` means.

    Raises:
        ConfigError: there is no such user, or the user of this process has no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        who = str(path).partition("/")[0].removeprefix("~") or "this user (there is no HOME either)"
        raise ConfigError(f"{path}: nobody knows the home folder of {who}", "Write the whole path.") from None


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
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from None
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


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file to read. Neither a device without an end nor a pipe without a writer is waited for.

    Raises:
        OSError: there is none, it may not be read, or it is no regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_text(path: str | Path, most: int) -> str:
    """The text of a regular file in UTF-8.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: there is none, it cannot be read, it is no regular file, or it is larger.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(most, max(size, 2**20)) + 1)  # all of that is allocated first
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content.decode("utf-8")


def require_no_pointer(file: Path, head: bytes, error: type[GrpoHpcError]) -> None:
    """Refuse what git leaves in the place of a large file that it did not fetch.

    Args:
        head: how the file begins.
        error: raised where it is such a pointer.
    """
    if head.startswith(_POINTER):
        raise error(
            f"{file} is a pointer of git-lfs and not the file itself", f"Fetch it: git -C {file.parent} lfs pull."
        )
