"""Megatron -> Hugging Face: the plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from grpo_hpc.checkpoint.copies import Job, Target
from grpo_hpc.checkpoint.copying import Copier
from grpo_hpc.checkpoint.folders import Folder
from grpo_hpc.checkpoint.naming import find, layers_and_experts, model_names, root_of, saved_names
from grpo_hpc.checkpoint.planning import about, model_dtype, placed, with_checks
from grpo_hpc.checkpoint.run import Plan
from grpo_hpc.checkpoint.to_megatron import hf_names
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import read_config, read_shape
from grpo_hpc.models.on_disk.companions import companions
from grpo_hpc.models.on_disk.model_folder import INDEX
from grpo_hpc.models.on_disk.safetensors_file import Placed, plan_file
from grpo_hpc.models.on_disk.stored import Block, Size, Stored
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule

SHARD_BYTES = 5 * 10**9
_WINDOW = 8 * 2**20  # bytes of two tensors that are compared at a time

Wanted = tuple[str, Size, Stored, Size, list[slice]]


def plan_to_hf(source: Folder, shard_bytes: int = SHARD_BYTES) -> Plan:
    """How a Megatron checkpoint becomes a Hugging Face folder. What pads the vocabulary is never read.

    Raises:
        CheckpointError: there is no configuration, or the tensors are not those that it describes.
    """
    if source.config is None:
        raise CheckpointError(
            f"{source.path} has no Hugging Face configuration beside it",
            "Name the model folder that it was trained from with --hf-config.",
        )
    shape = read_shape(source.config)
    tensors = list(wanted(source, shape))
    dtype = model_dtype((stored for _, _, stored, _, _ in tensors), shape, read_config(source.config))
    files = companions(source.config, dtype)
    small: list[tuple[str, int | None, bytes]] = [(name, None, content) for name, content in files.items()]
    sizes: dict[str, int] = {}
    places: dict[str, str] = {}
    jobs: list[Job] = []
    shards = _shards(tensors, shard_bytes)
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, positions = plan_file([(name, stored.dtype, size) for name, size, stored, _, _ in shard])
        small.append((file, 0, header))
        sizes[file] = positions[-1].offset + positions[-1].nbytes
        jobs += [_job(file, position, *described[2:]) for position, described in zip(positions, shard, strict=True)]
        places |= {name: file for name, *_ in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        small.append((INDEX, None, (json.dumps(index, indent=1) + "\n").encode()))
    return Plan(sizes, with_checks(jobs, source.checks()), tuple(small), about(source, "hf", shape, None))


def wanted(source: Folder, shape: ModelShape) -> Iterator[Wanted]:
    """Every Hugging Face tensor: name, shape, the stored tensor that has it, its leading index and rows there.

    Raises:
        CheckpointError: a parameter is missing, or stored twice with different values, or a tensor is unexplained.
    """
    root, used = root_of(source.tensors), set()
    first: dict[str, tuple[Stored, Size]] = {}
    for rule in weight_map(shape):
        for layer, expert in layers_and_experts(rule):
            found = find(source.tensors, root if rule.part != "vision" else "", rule, shape, layer, expert)
            names = hf_names(rule, layer, expert)
            for twin in found:
                _require_same(source, rule, first.setdefault(names[0], twin), twin)
            if rule.repeats:
                continue
            stored, prefix = found[0]
            used.add(stored.name)
            for number, name in enumerate(names):
                yield name, rule.layout.hf_shapes[number], stored, prefix, rule.layout.rows_of(number)
    _require_explained(source, shape, used, root)


def _require_same(source: Folder, rule: Rule, one: tuple[Stored, Size], other: tuple[Stored, Size]) -> None:
    """What the configuration takes for one parameter must be one, or a trained tensor would be lost."""
    if one == other:
        return
    rows, copier = slice(0, rule.layout.shape()[0]), Copier(_WINDOW)
    a, b = (_matrix(stored, prefix, rows) for stored, prefix in (one, other))
    with closing(copier):
        if one[0].dtype == other[0].dtype and not copier.different_bytes(a, b):
            return
    raise CheckpointError(
        f"{one[0].name!r} and {other[0].name!r} of {source.path} differ, but the configuration says that they are one "
        "parameter",
        "If the output layer was trained by itself, set tie_word_embeddings to false in config.json, or name a folder "
        "where it is with --hf-config."
        if rule.repeats
        else "",
    )


def _matrix(stored: Stored, prefix: Size, rows: slice) -> Target:
    blocks = tuple(stored.blocks(prefix, rows))
    nbytes = sum(block.rows * block.width for block in blocks)
    return Target(stored.name, Path(), 0, b"", b"", rows.stop, nbytes // max(rows.stop, 1), blocks)


def _require_explained(source: Folder, shape: ModelShape, used: set[str], root: str) -> None:
    """Nothing of the model may be left over: it would be lost."""
    twins = {root + name.replace("{i}.", "") for rule in weight_map(shape) for name in saved_names(rule, shape)}
    twins |= {
        root + name.replace("{i}", str(layer))
        for rule in weight_map(shape)
        for name in saved_names(rule, shape)
        for layer in rule.layers
    }
    left = sorted(model_names(source.tensors) - used - twins)
    if left:
        adapters = any("lora" in name or "adapter" in name for name in left)
        raise CheckpointError(
            f"{source.path} holds {len(left)} tensors that the configuration does not explain: {left[:5]}",
            "Merge its adapter first (checkpoint merge-lora)." if adapters else "",
        )


def _shards(tensors: list[Wanted], shard_bytes: int) -> list[list[Wanted]]:
    """Tensors by file, in the order of the weight map."""
    shards: list[list[Wanted]] = [[]]
    size = 0
    for described in tensors:
        name, size_of, stored = described[:3]
        nbytes = Stored(name, stored.dtype, size_of, ()).nbytes
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(described)
        size += nbytes
    return shards


def _job(file: str, place: Placed, stored: Stored, prefix: Size, rows: list[slice]) -> Job:
    height = sum(part.stop - part.start for part in rows)  # of the layout's view of it
    width = place.nbytes // height if height else 0
    blocks: list[Block] = []
    at = 0
    for part in rows:
        blocks += placed(stored.blocks(prefix, part), at)
        at += part.stop - part.start
    return Job((Target(place.name, Path(file), place.offset, b"", b"", height, width, tuple(blocks)),))
