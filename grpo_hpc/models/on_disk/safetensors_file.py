"""The safetensors format: eight bytes of header length, a JSON header, raw tensors without gaps.

Read and written here rather than through the library, because the library maps files into memory, and pages it has
touched count as the process's own: a bounded converter must read and write at offsets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_hpc.errors import CheckpointError
from grpo_hpc.files import require_no_pointer
from grpo_hpc.models.on_disk.stored import FROM_SAFETENSORS, ITEMSIZE, TO_SAFETENSORS, Chunk, Size, Stored

_LARGEST_HEADER = 100_000_000  # the library's own limit


def read_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of a file, with every claim of its header checked against its size.

    Raises:
        CheckpointError: the file is truncated, longer than it says, a pointer of git-lfs, or its header is damaged.
    """
    try:
        if not file.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{file} is {'no regular file' if file.exists() else 'missing'}")
        size = file.stat().st_size
        with file.open("rb") as handle:
            head = handle.read(64)
            require_no_pointer(file, head, CheckpointError)
            length = int.from_bytes(head[:8], "little")
            handle.seek(8)
            if size < 8 or length > min(_LARGEST_HEADER, size - 8):
                raise CheckpointError(f"{file} is no whole safetensors file: {size:,} bytes, header of {length:,}")
            header = json.loads(handle.read(length))
        return _tensors(file, header, 8 + length, size)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"the header of {file} is damaged: {error}") from error


def _tensors(file: Path, header: dict[str, dict[str, list[int]]], begin: int, size: int) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    header.pop("__metadata__", None)
    end = begin
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = FROM_SAFETENSORS.get(str(entry["dtype"])), tuple(entry["shape"])
        if not all(type(size) is int and size >= 0 for size in shape):
            raise CheckpointError(f"the header of {file} is damaged: tensor {name!r} has the shape {list(shape)}")
        if dtype is None:
            raise CheckpointError(f"tensor {name!r} of {file} has the dtype {entry['dtype']}, which is not supported")
        start, stop = (begin + offset for offset in entry["data_offsets"])
        if start != end or stop - start != math.prod(shape) * ITEMSIZE[dtype]:
            raise CheckpointError(f"the header of {file} is damaged: tensor {name!r} does not lie where it must")
        end = stop
        found[name] = Stored(name, dtype, shape, (Chunk(file, start, (0,) * len(shape), shape),))
    if end != size:
        last = next((name for name, t in found.items() if t.chunks[0].offset + t.nbytes > size), None)
        where = f"; tensor {last!r} is the first that is not whole" if last else ""
        raise CheckpointError(f"{file} has {size:,} bytes, but its header describes {end:,}{where}")
    return found


@dataclass(frozen=True)
class Placed:
    """A tensor of a file to be written: where its bytes go."""

    name: str
    dtype: str
    shape: Size
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


def plan_file(tensors: Sequence[tuple[str, str, Size]]) -> tuple[bytes, list[Placed]]:
    """The beginning of a file with these tensors (name, dtype, shape), and where each of them goes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, offsets = 0, []
    for name, dtype, shape in tensors:
        stop = at + math.prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": TO_SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [at, stop]}
        offsets.append(at)
        at = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    placed = [
        Placed(name, dtype, shape, begin + offset)
        for (name, dtype, shape), offset in zip(tensors, offsets, strict=True)
    ]
    return len(text).to_bytes(8, "little") + text, placed
