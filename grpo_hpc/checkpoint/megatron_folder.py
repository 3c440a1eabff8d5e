"""Megatron-Core's distributed checkpoints (``torch_dist``): their tensors as chunks, and the small files they need."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from grpo_hpc.checkpoint.index_file import METADATA, read_index
from grpo_hpc.checkpoint.torch_file import locate, saved
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.on_disk.stored import ITEMSIZE, Chunk, Size, Stored, is_file_name


def read_checkpoint(folder: Path) -> tuple[dict[str, Stored], dict[str, tuple[Path, int, int]]]:
    """The tensors of a checkpoint, and its other objects by name: file, offset, bytes.

    Raises:
        CheckpointError: a file is missing or truncated, or a chunk is damaged or there twice.
    """
    try:
        return _described(folder, read_index(folder))
    except CheckpointError:
        raise
    except Exception as error:  # whatever its records turn out to be
        said = str(error) or type(error).__name__
        raise CheckpointError(f"{folder / METADATA} is no index of a distributed checkpoint: {said}") from error


def _described(folder: Path, index: Any) -> tuple[dict[str, Stored], dict[str, tuple[Path, int, int]]]:
    places: dict[tuple[str, Size], Any] = {}
    for key, place in index.storage_data.items():
        at = (key.fqn, tuple(getattr(key, "offset", None) or ()))
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
        dtype = stored.properties.state[0]
        chunks = []
        for chunk in stored.chunks:
            start = tuple(chunk.offsets)
            place = _placed(folder, places, sizes, name, start)
            chunks.append(_chunk(folder, place, start, tuple(chunk.sizes), dtype))
        tensors[name] = Stored(name, dtype, tuple(stored.size), tuple(chunks))
        _require_sound(folder, tensors[name])
    return tensors, objects


def _require_sound(folder: Path, tensor: Stored) -> None:
    """Sizes are numbers and every chunk lies within the tensor, so that nobody counts to a number that is damage."""
    sizes, chunks = tensor.shape, tensor.chunks
    numbers = all(type(n) is int and n >= 0 for n in (*sizes, *(n for c in chunks for n in (*c.start, *c.size))))
    within = numbers and all(
        len(c.start) == len(c.size) == len(sizes)
        and all(start + size <= whole for start, size, whole in zip(c.start, c.size, sizes, strict=True))
        for c in chunks
    )
    if not within or sum(math.prod(c.size) for c in chunks) != math.prod(sizes):
        raise CheckpointError(
            f"{folder / METADATA} is damaged: the {len(chunks)} chunks of {tensor.name!r} do not make up its shape "
            f"{list(sizes)}"
        )


def _sizes(folder: Path, names: set[str]) -> dict[str, int]:
    sizes = {}
    for name in sorted(names):
        if not is_file_name(name):
            raise CheckpointError(f"{folder / METADATA} names {name!r}, which is not in its folder")
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


def empty_object() -> bytes:
    """The extra state of Megatron's and TransformerEngine's layers, which hold nothing unless training is in FP8."""
    return saved([None])


def config_bytes() -> bytes:
    """``metadata.json``: how Megatron-Core knows the format."""
    versions = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    return json.dumps(versions | {"common_backend": "torch", "common_backend_version": 1}).encode()


def common_bytes() -> bytes:
    """``common.pt``: what Megatron keeps outside of tensors. A converted model has made no steps."""
    return saved({"checkpoint_version": 3.0, "iteration": 0})
