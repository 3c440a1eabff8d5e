"""A quantised Hugging Face folder -> the same model in bfloat16: the plan.

Weights are numbers of 8 or 4 bits with scales, one for a block, a row or the whole matrix. They are multiplied out in
float32 and rounded once. Done once, before anything else: training, vLLM and every other conversion then see a plain
model, and the same one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.checkpoint.copies import Job, Kind, Quantised, Target
from grpo_hpc.checkpoint.folders import Folder
from grpo_hpc.checkpoint.planning import about, with_checks
from grpo_hpc.checkpoint.run import Plan
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.read_shape import QUANTISED, read_config, shape_of
from grpo_hpc.models.on_disk.companions import companions
from grpo_hpc.models.on_disk.model_folder import INDEX
from grpo_hpc.models.on_disk.safetensors_file import plan_file
from grpo_hpc.models.on_disk.stored import FLOATING, ITEMSIZE, Size, Stored

SHARD_BYTES = 5 * 10**9
_METHODS = ("fp8", "compressed-tensors")
_BESIDE = ("_scale_inv", "_scale", "_shape", "_zero_point", ".input_scale", ".activation_scale")


@dataclass(frozen=True)
class Plain:
    """A tensor of the folder to be written: as it is stored, or multiplied out."""

    name: str
    dtype: str
    shape: Size
    stored: Stored
    quantised: Quantised | None = None

    @property
    def nbytes(self) -> int:
        return Stored("", self.dtype, self.shape, ()).nbytes


def plan_dequantise(source: Folder, shard_bytes: int = SHARD_BYTES) -> Plan:
    """How a quantised folder becomes a plain one.

    Raises:
        CheckpointError: the family or the way of quantising is not supported, or a scale is missing or of another size.
    """
    config = read_config(source.path)
    settings = _settings(source.path, config)
    shape = shape_of(_plain(config))
    sizes: dict[str, int] = {}
    places: dict[str, str] = {}
    small: list[tuple[str, int | None, bytes]] = []
    jobs: list[Job] = []
    shards = _shards(list(plain_tensors(source.tensors, settings)), shard_bytes)
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, positions = plan_file([(tensor.name, tensor.dtype, tensor.shape) for tensor in shard])
        small.append((file, 0, header))
        sizes[file] = positions[-1].offset + positions[-1].nbytes
        jobs += [
            Job((_target(file, position.offset, tensor),)) for position, tensor in zip(positions, shard, strict=True)
        ]
        places |= {tensor.name: file for tensor in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        small.append((INDEX, None, (json.dumps(index, indent=1) + "\n").encode()))
    files = companions(source.path, "bfloat16")
    files["config.json"] = (json.dumps(_plain(json.loads(files["config.json"])), indent=2) + "\n").encode()
    small += [(name, None, content) for name, content in files.items()]
    return Plan(sizes, with_checks(jobs, source.checks()), tuple(small), about(source, "hf", shape, None))


def is_quantised(path: Path) -> bool:
    """Whether the configuration of a model folder says that its weights are."""
    return _said(read_config(path)) is not None


def _said(config: Mapping[str, Any]) -> dict[str, Any] | None:
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    return next((part[key] for part in parts for key in QUANTISED if isinstance(part.get(key), dict)), None)


def _settings(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    settings = _said(config) or {}
    if (method := settings.get("quant_method")) not in _METHODS:
        raise CheckpointError(
            f"quantization_config of {path}: quant_method {method!r} is not read", f"Supported: {', '.join(_METHODS)}."
        )
    block = settings.get("weight_block_size") or [1, 1]
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise CheckpointError(
            f"quantization_config of {path}: weight_block_size is {block!r}, not two positive numbers"
        )
    return settings


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what says how weights are quantised."""
    kept = {key: value for key, value in config.items() if key not in QUANTISED}
    return {key: _plain(value) if key == "text_config" else value for key, value in kept.items()}


def plain_tensors(tensors: Mapping[str, Stored], settings: Mapping[str, Any]) -> Iterator[Plain]:
    """Every tensor of the plain model, in the order of the files."""
    for name, stored in tensors.items():
        if name.endswith("_packed"):
            yield _packed(name.removesuffix("_packed"), stored, tensors)
        elif stored.dtype == "float8_e4m3fn":
            yield _eight_bits(name, stored, tensors, settings)
        elif not name.endswith(_BESIDE):
            if stored.dtype not in FLOATING:
                raise CheckpointError(f"tensor {name!r} is {stored.dtype}, which is read neither plain nor quantised")
            yield Plain(name, stored.dtype, stored.shape, stored)


def _eight_bits(name: str, stored: Stored, tensors: Mapping[str, Stored], settings: Mapping[str, Any]) -> Plain:
    scale = tensors.get(f"{name}_scale_inv") or tensors.get(f"{name}_scale")
    if scale is None or len(stored.shape) != 2:
        raise CheckpointError(f"tensor {name!r} is {stored.dtype} {list(stored.shape)} without a scale that is known")
    rows, columns = stored.shape
    block = settings.get("weight_block_size")
    if not block or len(scale.shape) < 2:  # one for the matrix, or one for each row
        block = (rows, columns) if math.prod(scale.shape) == 1 else (1, columns)
    return _multiplied("fp8", name, stored, scale, stored.shape, block)


def _packed(name: str, stored: Stored, tensors: Mapping[str, Stored]) -> Plain:
    """Eight numbers of four bits in each word, the lowest first, in groups with a scale each (compressed-tensors)."""
    scale, size = tensors.get(f"{name}_scale"), tensors.get(f"{name}_shape")
    known = scale is not None and len(scale.shape) == 2 and stored.dtype == "int32" and len(stored.shape) == 2
    if scale is None or size is None or not known or f"{name}_zero_point" in tensors:
        raise CheckpointError(
            f"tensor {stored.name!r} is packed in a way that is not read",
            "Read are four bits in int32 with weight_scale and weight_shape, without zero points.",
        )
    shape = stored.shape[0], 8 * stored.shape[1]
    if _numbers(size) != shape or not scale.shape[1] or shape[1] % scale.shape[1]:
        raise CheckpointError(
            f"{size.name!r} says {list(_numbers(size))} with scales {list(scale.shape)}, but {stored.name!r} holds "
            f"{list(shape)}"
        )
    return _multiplied("int4", name, stored, scale, shape, (1, shape[1] // scale.shape[1]))


def _multiplied(kind: Kind, name: str, stored: Stored, scale: Stored, shape: Size, block: Sequence[int]) -> Plain:
    """A weight with its scales, when there are as many as its blocks ask for; the last of a row may be cut short."""
    grid = tuple(-(-size // part) for size, part in zip(shape, block, strict=True))
    if scale.dtype not in FLOATING or math.prod(scale.shape) != math.prod(grid):
        raise CheckpointError(
            f"{scale.name!r} is {scale.dtype} {list(scale.shape)}; for blocks of {list(block)} in {list(shape)} "
            f"it would be {list(grid)} numbers"
        )
    quantised = Quantised(kind, stored, scale.viewed(grid), (int(block[0]), int(block[1])))
    return Plain(name, "bfloat16", shape, stored, quantised)


def _numbers(stored: Stored) -> Size:
    """The whole numbers of a small tensor."""
    (chunk,) = stored.chunks
    width = ITEMSIZE[stored.dtype]
    with chunk.file.open("rb") as file:
        file.seek(chunk.offset)
        raw = file.read(min(stored.nbytes, 8 * width))
    return tuple(int.from_bytes(raw[at : at + width], "little", signed=True) for at in range(0, len(raw), width))


def _shards(tensors: Sequence[Plain], shard_bytes: int) -> list[list[Plain]]:
    shards: list[list[Plain]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(held.nbytes for held in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _target(file: str, offset: int, tensor: Plain) -> Target:
    rows = tensor.shape[0] if tensor.shape else 1
    width = tensor.nbytes // max(rows, 1)
    blocks = () if tensor.quantised else tuple(tensor.stored.viewed(tensor.shape or (1,)).blocks((), slice(0, rows)))
    return Target(tensor.name, Path(file), offset, b"", b"", rows, width, blocks, quantised=tensor.quantised)
