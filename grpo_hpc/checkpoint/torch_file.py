"""One tensor as ``torch.save`` writes it: a zip archive whose member ``data/0`` is the raw storage.

Megatron's distributed checkpoints are such archives one behind the other. Written by hand, the raw bytes can be
streamed to their place; read by hand, nothing is unpickled. CRCs are left at 0, as torch does after
``torch.serialization.set_crc32_options(False)``: our manifest has a better digest of every archive, and
``torch.load`` looks at neither.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
import zlib
from io import SEEK_CUR, SEEK_END, RawIOBase
from pathlib import Path
from typing import Any

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.on_disk.stored import ITEMSIZE, Size

LARGEST = 2**31  # no zip64 records are written

_STORAGE = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "bfloat16": "BFloat16Storage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_ALIGN = 64
_LARGEST_READ = 2**20  # bytes of an archive's directory, which has four entries


def frame(dtype: str, shape: Size) -> tuple[bytes, bytes]:
    """What stands before and behind the raw bytes of a contiguous tensor."""
    nbytes = math.prod(shape) * ITEMSIZE[dtype]
    if nbytes >= LARGEST:
        raise ValueError(f"{nbytes} bytes do not fit into one archive")
    return _archive(_pickled(dtype, shape), nbytes)


def saved(value: Any) -> bytes:
    """``torch.save`` of a value without tensors."""
    return b"".join(_archive(pickle.dumps(value, 2), None))


def _archive(pickled: bytes, nbytes: int | None) -> tuple[bytes, bytes]:
    """The archive around ``nbytes`` of storage, or one without storage."""
    head, tail = bytearray(), bytearray()
    members: list[tuple[str, int, int, int]] = []  # name, size, checksum, place

    def begin(name: str, size: int, crc: int) -> None:
        members.append((name, size, crc, len(head)))
        head.extend(_local(name, size, crc, len(head)))

    for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
        begin(name, len(content), zlib.crc32(content))
        head.extend(content)
    if nbytes is not None:
        begin("data/0", nbytes, 0)
    for name, size, crc, at in members:
        sizes = (crc, size, size, len(_full(name)))
        tail += struct.pack("<I6H3I5H2I", 0x02014B50, *[0] * 6, *sizes, *[0] * 5, at) + _full(name)
    end = len(head) + (nbytes or 0)
    tail += struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(members), len(members), len(tail), end, 0)
    return bytes(head), bytes(tail)


def _full(name: str) -> bytes:
    return b"archive/" + name.encode()


def _local(name: str, size: int, crc: int, at: int) -> bytes:
    """A member's header, padded so that its content begins at a multiple of 64 bytes."""
    bare = at + 30 + len(_full(name))
    extra = -bare % _ALIGN
    extra += _ALIGN if 0 < extra < 4 else 0
    padding = b"FB" + struct.pack("<H", extra - 4) + b"Z" * (extra - 4) if extra else b""
    header = struct.pack("<IHHHHHIIIHH", 0x04034B50, 0, 0, 0, 0, 0, crc, size, size, len(_full(name)), extra)
    return header + _full(name) + padding


def _pickled(dtype: str, shape: Size) -> bytes:
    """``_rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())``, protocol 2."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values: Size) -> bytes:
        return b"(" + b"".join(_integer(value) for value in values) + b"t"

    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = b"ctorch\n" + _STORAGE[dtype].encode() + b"\n"
    persistent = b"(" + text("storage") + storage + text("0") + text("cpu") + _integer(math.prod(shape)) + b"tQ"
    empty = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + persistent + _integer(0) + numbers(shape) + numbers(stride) + b"\x89" + empty + b"t"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."


def _integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def locate(file: Path, offset: int, length: int, nbytes: int) -> tuple[int, int | None]:
    """Where the ``nbytes`` raw bytes of an archive at ``offset`` begin in ``file``, and their CRC-32 if it is noted.

    Raises:
        CheckpointError: there is no whole archive with one storage of that size.
    """
    try:
        with _Window(file, offset, length) as window, zipfile.ZipFile(window) as archive:
            member = next(m for m in archive.infolist() if m.filename.endswith("/data/0"))
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != nbytes:
                raise CheckpointError(
                    f"the tensor at byte {offset:,} of {file} has {member.file_size:,} bytes instead of {nbytes:,}"
                )
            window.seek(member.header_offset)
            local = window.read(30)
            name, extra = struct.unpack("<HH", local[26:30])
            return offset + member.header_offset + 30 + name + extra, member.CRC or None
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive makes zipfile raise many things
        raise CheckpointError(f"the tensor at byte {offset:,} of {file} is damaged: {error or 'no storage'}") from error


class _Window(RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: Path, offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length, self._at = file.open("rb"), offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (self._at if whence == SEEK_CUR else self._length if whence == SEEK_END else 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = max(0, min(self._length - self._at, size if size >= 0 else self._length))
        if size > _LARGEST_READ:
            raise ValueError(f"its directory would have {size:,} bytes")
        self._file.seek(self._offset + self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()
