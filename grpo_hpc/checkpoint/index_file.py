"""``.metadata``, the index of a torch distributed checkpoint: a pickle of torch's classes, handled without torch.

It is read into plain records by an unpickler that knows what belongs there and nothing else, so a foreign file cannot
run code; and it is written by name.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.on_disk.stored import ITEMSIZE, Size, Stored

METADATA = ".metadata"
_DCP = "torch.distributed.checkpoint."
_RECORDS = {
    *(
        (_DCP + "metadata", name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    *((_DCP + "planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    (_DCP + "filesystem", "_StorageInfo"),
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
    ("pathlib", "PosixPath"),
}


class Record:
    """Stands for an object of torch's index: its attributes, or the state that its class would have been given."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class _IndexUnpickler(pickle.Unpickler):
    """Knows what an index is made of, and makes plain records of it: no class of a file is ever called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return Record
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in ITEMSIZE:
            return name
        if (module, name) in {("collections", "OrderedDict"), ("builtins", "set")}:
            return super().find_class(module, name)
        if (module, name) in {("torch", "device"), ("torch.serialization", "_get_layout")}:
            return Record
        if (module, name) == ("builtins", "getattr"):  # early releases of Python 3.11 write enumerations with it
            return Record
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an index")


def read_index(folder: Path) -> Any:
    """The unpickled index of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or holds what does not belong there.
    """
    file = folder / METADATA
    try:
        if not file.is_file():
            raise ValueError("it is no regular file")
        data = file.read_bytes()
        _require_bounded(data)
        return _IndexUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # damage makes an unpickler raise nearly everything
        said = str(error) or type(error).__name__
        raise CheckpointError(f"{file} is damaged or no index of a distributed checkpoint: {said}") from error


def _require_bounded(data: bytes) -> None:
    """Refuse what no pickler writes into an index, before an unpickler allocates what a damaged number asks for.

    The memo is a table that is made as long as the largest number in it, 64 GiB for a few bytes (``LONG_BINPUT``);
    a bytearray is made before its bytes are looked for. So only opcodes are let through that allocate no more than they
    bring along, and numbers of the memo that are no larger than the file.
    """
    steps, at = _steps(len(data)), 0
    while at < len(data):
        if run := steps.match(data, at):
            at = run.end()
            continue
        opcode = data[at : at + 1]
        if opcode == pickle.STOP:
            return
        if opcode == pickle.GLOBAL:
            at = data.find(b"\n", data.find(b"\n", at) + 1) + 1 or len(data)
        elif opcode in _BEHIND_LENGTH:
            width = _BEHIND_LENGTH[opcode]
            at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")
        else:
            raise ValueError(f"byte {at:,} is {opcode!r}, which is nothing that an index is written with")
    raise ValueError("it ends before it is complete")


# opcodes that are followed by a length of so many bytes, and then by that many bytes
_BEHIND_LENGTH = {
    pickle.BINUNICODE: 4,
    pickle.SHORT_BINUNICODE: 1,
    pickle.BINBYTES: 4,
    pickle.SHORT_BINBYTES: 1,
    pickle.LONG1: 1,
}
_BARE = (
    (pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.EMPTY_TUPLE + pickle.EMPTY_SET + pickle.MARK + pickle.NONE)
    + (pickle.NEWTRUE + pickle.NEWFALSE + pickle.STACK_GLOBAL + pickle.REDUCE + pickle.NEWOBJ + pickle.BUILD)
    + (pickle.MEMOIZE + pickle.SETITEM + pickle.SETITEMS + pickle.APPEND + pickle.APPENDS + pickle.ADDITEMS)
    + (pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3)
)
# opcodes that are followed by so many bytes
_FIXED = (
    (1, pickle.PROTO + pickle.BININT1 + pickle.BINPUT + pickle.BINGET),
    (2, pickle.BININT2),
    (4, pickle.BININT + pickle.LONG_BINGET),
    (8, pickle.FRAME + pickle.BINFLOAT),
)


def _steps(size: int) -> re.Pattern[bytes]:
    """Any number of opcodes of known length; a number of ``LONG_BINPUT`` is at most about ``size``."""
    high = min(size.bit_length() // 8, 3)  # bytes below the highest one that a size has
    largest = re.escape(bytes([min(size >> 8 * high, 255)]))
    number = b"[\\0-\\xff]{%d}[\\0-%s]\\0{%d}" % (high, largest, 3 - high)
    fixed = b"".join(b"|[%s][\\0-\\xff]{%d}" % (re.escape(opcodes), width) for width, opcodes in _FIXED)
    return re.compile(b"(?:[%s]%s|%s%s){1,10000}+" % (re.escape(_BARE), fixed, pickle.LONG_BINPUT, number), re.DOTALL)


class _Global:
    """A class of torch, by name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Instance:
    """An object of a class of torch that is made without calling it, and then given its state."""

    def __init__(self, kind: _Global, state: Any) -> None:
        self.kind, self.state = kind, state


class _Call:
    """An object that a class of torch makes of one argument."""

    def __init__(self, kind: _Global, argument: Any) -> None:
        self.kind, self.argument = kind, argument


_PythonPickler: Any = pickle._Pickler  # the one whose handling of a type can be changed


class _IndexPickler(_PythonPickler):
    """Writes an index without torch: classes are named, not imported."""

    dispatch: ClassVar[dict[type, Any]] = _PythonPickler.dispatch.copy()

    def _save_global(self, value: _Global) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        self.memoize(value)

    def _save_instance(self, value: _Instance) -> None:
        self.save(value.kind)
        self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        self.memoize(value)
        self.save(value.state)
        self.write(pickle.BUILD)

    def _save_call(self, value: _Call) -> None:
        self.save(value.kind)
        self.save((value.argument,))
        self.write(pickle.REDUCE)
        self.memoize(value)

    dispatch[_Global], dispatch[_Instance], dispatch[_Call] = _save_global, _save_instance, _save_call


_METADATA, _INDEX, _TENSOR, _OBJECT, _CHUNK, _PROPERTIES, _MEMORY_FORMAT = (
    _Global(_DCP + "metadata", name)
    for name in (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
    )
)
_PLACE, _SIZE = _Global(_DCP + "filesystem", "_StorageInfo"), _Global("torch", "Size")
_STRIDED = _Call(_Global("torch.serialization", "_get_layout"), "torch.strided")
_CONTIGUOUS = _Call(_MEMORY_FORMAT, 0)


def index_bytes(
    tensors: Iterable[Stored], archives: dict[tuple[str, Size], tuple[str, int, int]], objects: Iterable[str]
) -> bytes:
    """``.metadata`` of a checkpoint.

    Args:
        archives: file, offset and length of every chunk by tensor and start, of every object by name and ().
        objects: names of objects; those without an archive stand for the empty object, whose archive is ("", ()).
    """
    described: dict[str, Any] = {}
    storage: dict[Any, Any] = {}

    def place(name: str, start: Size | None, archive: tuple[str, int, int]) -> None:
        key = {"fqn": name, "index": None, "offset": None if start is None else _Call(_SIZE, start)}
        file, offset, length = archive
        where = {"relative_path": file, "offset": offset, "length": length, "transform_descriptors": None}
        storage[_Instance(_INDEX, key)] = _Instance(_PLACE, where)

    for tensor in tensors:
        chunks = [
            _Instance(_CHUNK, {"offsets": _Call(_SIZE, c.start), "sizes": _Call(_SIZE, c.size)}) for c in tensor.chunks
        ]
        properties = _Instance(_PROPERTIES, (_Global("torch", tensor.dtype), _STRIDED, False, _CONTIGUOUS, False))
        state = {"properties": properties, "size": _Call(_SIZE, tensor.shape), "chunks": chunks}
        described[tensor.name] = _Instance(_TENSOR, state)
        for chunk in tensor.chunks:
            place(tensor.name, chunk.start, archives[tensor.name, chunk.start])
    for name in objects:
        described[name] = _Instance(_OBJECT, {})
        place(name, None, archives.get((name, ()), archives["", ()]))
    whole = {"state_dict_metadata": described, "planner_data": None, "storage_data": storage}
    out = io.BytesIO()
    _IndexPickler(out, 2).dump(_Instance(_METADATA, whole | {"storage_meta": None, "version": None}))
    return out.getvalue()
