"""Megatron-Core's distributed checkpoints (``torch_dist``): reading their index, and writing one.

The index ``.metadata`` is a pickle. It is read by an unpickler that knows the classes that belong there and nothing
else, so a foreign file cannot run code.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grpo_hpc.checkpoint.stored import ITEMSIZE, Chunk, Size, Stored
from grpo_hpc.checkpoint.torch_file import locate
from grpo_hpc.errors import CheckpointError

METADATA = ".metadata"
_DCP = "torch.distributed.checkpoint."
_KNOWN = {
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
} | {
    *((_DCP + "planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    (_DCP + "filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("builtins", "set"),
}


class _IndexUnpickler(pickle.Unpickler):
    """Knows what an index is made of; dtypes are pickled as attributes of torch."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in _KNOWN:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name == "MCoreMetadata":
            return super().find_class(_DCP + "metadata", "Metadata")
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an index")


def read_index(folder: Path) -> Any:
    """The unpickled index of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or holds what does not belong there.
    """
    file = folder / METADATA
    try:
        return _IndexUnpickler(io.BytesIO(file.read_bytes())).load()
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged or no index of a distributed checkpoint: {error}") from error


def read_checkpoint(folder: Path) -> tuple[dict[str, Stored], dict[str, tuple[Path, int, int]]]:
    """The tensors of a checkpoint, and its other objects by name: file, offset, bytes.

    Raises:
        CheckpointError: a file is missing or truncated, or a chunk is damaged or there twice.
    """
    index = read_index(folder)
    places: dict[tuple[str, Size], Any] = {}
    for key, place in index.storage_data.items():
        at = (key.fqn, tuple(key.offset or ()))
        if at in places:
            raise CheckpointError(f"chunk {at[1]} of {key.fqn!r} is twice in {folder / METADATA}")
        places[at] = place
    sizes = _sizes(folder, {place.relative_path for place in places.values()})
    tensors, objects = {}, {}
    for name, stored in index.state_dict_metadata.items():
        if not hasattr(stored, "chunks"):
            place = _placed(folder, places, sizes, name, ())
            objects[name] = (folder / place.relative_path, place.offset, place.length)
            continue
        dtype = str(stored.properties.dtype).removeprefix("torch.")
        if dtype not in ITEMSIZE:
            raise CheckpointError(f"tensor {name!r} of {folder} has the dtype {dtype}, which is not supported")
        chunks = []
        for chunk in stored.chunks:
            start = tuple(chunk.offsets)
            place = _placed(folder, places, sizes, name, start)
            chunks.append(_chunk(folder, place, start, tuple(chunk.sizes), dtype))
        tensors[name] = Stored(name, dtype, tuple(stored.size), tuple(chunks))
    return tensors, objects


def _sizes(folder: Path, names: set[str]) -> dict[str, int]:
    sizes = {}
    for name in sorted(names):
        try:
            sizes[name] = (folder / name).stat().st_size
        except OSError as error:
            raise CheckpointError(f"{folder / name} is missing, though {METADATA} lists it") from error
    return sizes


def _placed(folder: Path, places: dict[tuple[str, Size], Any], sizes: dict[str, int], name: str, offsets: Size) -> Any:
    place = places.get((name, offsets)) or places.get((name, ()))
    if place is None:
        raise CheckpointError(f"chunk {offsets} of {name!r} is missing from {folder / METADATA}")
    size, end = sizes[place.relative_path], place.offset + place.length
    if end > size:
        raise CheckpointError(
            f"{folder / place.relative_path} is truncated: it has {size:,} bytes, but {name!r} ends at byte {end:,}"
        )
    return place


def _chunk(folder: Path, place: Any, start: Size, size: Size, dtype: str) -> Chunk:
    file, nbytes = folder / place.relative_path, math.prod(size) * ITEMSIZE[dtype]
    offset, crc = locate(file, place.offset, place.length, nbytes)
    return Chunk(file, offset, start, size, crc)


def index_bytes(
    tensors: Iterable[Stored], archives: dict[tuple[str, Size], tuple[str, int, int]], objects: Iterable[str]
) -> bytes:
    """``.metadata`` of a checkpoint.

    Args:
        archives: file, offset and length of every chunk by tensor and start, of every object by name and ().
        objects: names of objects; those without an archive stand for the empty object, whose archive is ("", ()).
    """
    import torch
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    described: dict[str, Any] = {}
    storage: dict[Any, Any] = {}
    for tensor in tensors:
        chunks = [dcp.ChunkStorageMetadata(torch.Size(c.start), torch.Size(c.size)) for c in tensor.chunks]
        properties = dcp.TensorProperties(dtype=getattr(torch, tensor.dtype))
        described[tensor.name] = dcp.TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        for chunk in tensor.chunks:
            storage[dcp.MetadataIndex(tensor.name, chunk.start)] = _StorageInfo(*archives[tensor.name, chunk.start])
    for name in objects:
        described[name] = dcp.BytesStorageMetadata()
        storage[dcp.MetadataIndex(name)] = _StorageInfo(*archives.get((name, ()), archives["", ()]))
    return pickle.dumps(dcp.Metadata(described, storage_data=storage))


def empty_object() -> bytes:
    """The extra state of Megatron's and TransformerEngine's layers, which hold nothing unless training is in FP8."""
    import torch

    empty = io.BytesIO()
    torch.save([None], empty)
    return empty.getvalue()


def config_bytes() -> bytes:
    """``metadata.json``: how Megatron-Core knows the format."""
    versions = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    return json.dumps(versions | {"common_backend": "torch", "common_backend_version": 1}).encode()


def common_bytes() -> bytes:
    """``common.pt``: what Megatron keeps outside of tensors. A converted model has made no steps."""
    import torch

    out = io.BytesIO()
    torch.save({"checkpoint_version": 3.0, "iteration": 0}, out)
    return out.getvalue()
