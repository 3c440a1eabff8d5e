"""Files of one JSON object per line: many writers append, readers follow, a resumed run cuts off the end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo_hpc.files import open_regular, replacing

Record = dict[str, Any]
_LARGEST = 1e300
_LONGEST_LINE = 16 << 20


class JsonLines:
    """Appends records to a file. Every call is a single write, so that several processes can share the file.

    On a full disk a row is there as a whole or not at all.

    Args:
        path: made with its folder when it is missing. A half-written last line of a killed writer is closed off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if _ends_inside_a_line(self.path):
            self._append(b"\n")

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append ``records``; NaN and infinities become null, which every JSON reader understands."""
        self._append(b"".join(map(to_line, records)))

    def keep(self, wanted: Callable[[Record], bool]) -> None:
        """Drop every record that is not ``wanted``, and damaged lines; the file is replaced in one step."""
        if not self.path.exists():
            return
        with self.path.open("rb") as old, replacing(self.path) as new:
            new.writelines(line for line in old if (record := parse(line)) is not None and wanted(record))

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """Append ``data``; what went in of it before an error is taken back, unless somebody has written behind it."""
    written = 0
    try:
        while written < len(data):  # more than once on a full disk alone, where the next write says so
            written += os.write(descriptor, data[written:])
    except OSError:
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        if written and os.fstat(descriptor).st_size == end:
            os.ftruncate(descriptor, end - written)
        raise


def read_from(path: str | Path, offset: int = 0) -> tuple[list[Record], int]:
    """Records after byte ``offset`` and the offset to go on from; an unfinished last line waits for the next call.

    Lines that are no JSON objects, or longer than 16 MiB, are passed over. A file that is not there yet is empty.
    """
    path = Path(path)
    if not path.exists():
        return [], offset
    records = []
    with open_regular(path) as file:
        file.seek(offset)
        whole = True  # else the piece that is read next goes on with a line that is too long
        while piece := file.readline(_LONGEST_LINE):
            ended = piece.endswith(b"\n")
            if not ended and len(piece) < _LONGEST_LINE:
                break
            if whole and ended and (record := parse(piece)) is not None:
                records.append(record)
            whole = ended
            offset = file.tell() if ended else offset
    return records, offset


def to_line(record: Mapping[str, Any]) -> bytes:
    """``record`` as a line of a file; NaN and infinities become null, and what is no character a question mark."""
    return (json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace")


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON that every reader understands: NaN and infinities are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def number(value: Any) -> float | None:
    """``value`` if it is a finite number that can be counted with, else None."""
    return value if type(value) in (int, float) and -_LARGEST < value < _LARGEST else None


def parse(line: bytes) -> Record | None:
    """The object on ``line``, or None when there is no complete one."""
    try:
        value = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def _ends_inside_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
