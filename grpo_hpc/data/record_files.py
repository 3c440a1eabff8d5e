"""Records of a data file: JSON lines or a JSON list, Parquet, or a folder written by ``datasets``' ``save_to_disk``."""

from __future__ import annotations

import json
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.files import require_no_pointer

TOO_DEEP = "is nested too deeply"
_SHOWN_MISTAKES = 5

# (line or row number, the parsed record or what is wrong with it)
Records = Iterator[tuple[int, Any]]


class Mistake(Exception):
    """What is wrong with one row."""


class Mistakes:
    """What is wrong with the rows of a file, told all at once.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._count, self._shown = path, 0, list[str]()

    def add(self, number: int, what: object) -> None:
        """Note ``what`` is wrong with row or line ``number``."""
        self._count += 1
        if self._count <= _SHOWN_MISTAKES:
            self._shown.append(f"  {self._path}:{number}: {what}")

    def require_none(self, hint: str = "") -> None:
        """Go on only if there are none.

        Raises:
            ConfigError: lists the first few with their places.
        """
        if not self._count:
            return
        rows = "1 row that" if self._count == 1 else f"{self._count} rows that"
        more = self._count - len(self._shown)
        rest = [f"  ... and {more} more"] if more else []
        raise ConfigError("\n".join([f"{self._path} has {rows} cannot be used:", *self._shown, *rest]), hint)


def files_of(path: str | Path) -> list[Path]:
    """The files that rows of ``path`` are read from, in order.

    Raises:
        ConfigError: it does not exist, or is a pipe or a device, which could be read once at most.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"the data file {path} does not exist", _files_beside(path))
    if not path.is_file() and not path.is_dir():
        raise ConfigError(f"the data file {path} is no regular file")
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def read_records(path: Path) -> Records:
    """Every record with its number from 1, parsed, or the :class:`Mistake` that makes it unreadable.

    Raises:
        ConfigError: ``path`` does not exist, cannot be read, is a pointer of git-lfs, of no known format, or damaged as
            a whole.
        EnvironmentProblem: the package that reads this format is not installed.
    """
    try:
        for file in files_of(path):
            with file.open("rb") as handle:
                require_no_pointer(file, handle.read(64), ConfigError)
        yield from _reader(path)(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None


def _reader(path: Path) -> Callable[[Path], Records]:
    """The function that reads the format of ``path``."""
    if path.is_dir():
        return _read_datasets_folder
    readers = {".jsonl": _read_json_lines, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ConfigError(
            f"{path} is of no known format: its name ends in {path.suffix or 'nothing'}",
            f"Known are {', '.join(readers)} and folders written by datasets' save_to_disk.",
        )
    return readers[path.suffix]


def _files_beside(path: Path) -> str:
    names = sorted(p.name for p in path.parent.iterdir() if p.name[0] != ".") if path.parent.is_dir() else []
    return f"{path.parent} holds: {', '.join(names[:8])}." if names else f"There is nothing in {path.parent} either."


def _read_json_lines(path: Path) -> Records:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            yield number, parse_json(line)


def _read_json(path: Path) -> Records:
    with path.open("rb") as file:
        begin = file.read(1000).removeprefix(BOM_UTF8).lstrip()
    if not begin.startswith(b"["):
        yield from _read_json_lines(path)
        return
    records = parse_json(path.read_bytes())
    if isinstance(records, Mistake):
        raise ConfigError(f"{path} {records}")
    yield from enumerate(records, start=1)


def parse_json(data: bytes) -> Any:
    """What ``data`` says, or what is wrong with it."""
    try:
        record = json.loads(data.decode("utf-8-sig"))
        if b"\\u" in data:
            json.dumps(record, ensure_ascii=False).encode()
        return record
    except UnicodeDecodeError as error:
        return Mistake(f"is not UTF-8: {error.reason} at byte {error.start}")
    except UnicodeEncodeError as error:
        return Mistake(f"has half a character: {error.object[error.start]!a} without the other half of its pair")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return Mistake(f"is not JSON: {error.msg} at {line}column {error.colno}")
    except RecursionError:
        return Mistake(TOO_DEEP)
    except ValueError:  # Python reads integers up to a limit
        return Mistake(f"has an integer of more than {sys.get_int_max_str_digits()} digits")


def _read_parquet(path: Path) -> Records:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise _needs("pyarrow", path) from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is not a readable Parquet file: {error}") from None


def _read_datasets_folder(path: Path) -> Records:
    try:
        from datasets import Dataset, load_from_disk
    except ImportError:
        raise _needs("datasets", path) from None
    try:
        dataset = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{path} is not a folder written by datasets' save_to_disk: {error}") from None
    if not isinstance(dataset, Dataset):
        splits = list(dataset)
        hint = f"Name one of them, such as {path / splits[0]}."
        raise ConfigError(f"{path} holds several splits: {', '.join(splits)}", hint)
    yield from enumerate(dataset, start=1)


def _needs(package: str, path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(f"reading {path} needs the package {package}", f"Install it: pip install {package}")
