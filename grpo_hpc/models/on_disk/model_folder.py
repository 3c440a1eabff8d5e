"""The one reader of a Hugging Face model folder: training, conversion and the checks before a run see the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from grpo_hpc.errors import CheckpointError
from grpo_hpc.files import read_text
from grpo_hpc.models.families import family, weight_map
from grpo_hpc.models.families.family import HEAD
from grpo_hpc.models.on_disk.safetensors_file import read_tensors
from grpo_hpc.models.on_disk.stored import FLOATING, Size, Stored, is_file_name
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule, entries

_LARGEST = 2**28  # bytes of an index
INDEX = "model.safetensors.index.json"
_PART = 8 * 2**20  # bytes that are compared at a time
_SINGLE = "model.safetensors"
# What older versions of transformers saved with a model although it follows from the configuration.
_LEFTOVERS = (".rotary_emb.inv_freq",)


def weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or ``model*.safetensors`` where there is none. Others are no part of the model.

    Raises:
        CheckpointError: the index cannot be read, or a whole model lies beside the shards that it names.
    """
    index = read_places(folder)
    if not index:
        return sorted(folder.glob("model*.safetensors"))
    named = set(index.values())
    if _SINGLE not in named and (folder / _SINGLE).exists():
        raise CheckpointError(
            f"{folder} holds {_SINGLE} beside the {len(named)} files that {INDEX} names: two models",
            f"Move {_SINGLE} or {INDEX} away; transformers would take the former, vLLM the latter.",
        )
    return sorted(folder / name for name in named)


def read_places(folder: Path) -> dict[str, str]:
    """The file of every tensor, as the index of a folder says; empty when it has none.

    Raises:
        CheckpointError: the index cannot be read.
    """
    file = folder / INDEX
    if not file.exists():
        return {}
    try:
        places = json.loads(read_text(file, _LARGEST))["weight_map"]
        found = {str(name): str(place) for name, place in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if outside := [place for place in found.values() if not is_file_name(place)]:
        raise CheckpointError(f"{file} names {outside[0]!r}, which is no file of its own folder")
    return found


def read_model(folder: Path) -> dict[str, Stored]:
    """The tensors of a model folder, by the headers of its files.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or a tensor is not in exactly the file it must be in.
    """
    index, found = read_places(folder), dict[str, Stored]()
    for file in _present(folder, index):
        for name, tensor in read_tensors(file).items():
            if name in found:
                first = found[name].chunks[0].file.name
                raise CheckpointError(f"tensor {name!r} is twice in {folder}: in {first} and in {file.name}")
            found[name] = tensor
    for name, place in index.items():
        if name not in found:
            raise CheckpointError(f"tensor {name!r} is missing from {folder / place}, where {INDEX} places it")
    return {name: tensor for name, tensor in found.items() if not name.endswith(_LEFTOVERS)}


def _present(folder: Path, index: Mapping[str, str]) -> list[Path]:
    files = weight_files(folder)
    if not files:
        others = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))[:3])
        raise CheckpointError(
            f"{folder} has no model*.safetensors and no {INDEX}" + (f", but {others}" if others else ""),
            "The format of Hugging Face is meant, as save_pretrained() writes it.",
        )
    for file in files:
        if not file.exists():
            missing = next((name for name, place in index.items() if place == file.name), "")
            raise CheckpointError(f"{file} is missing, though {INDEX} places {missing!r} there")
    return files


def check_model(folder: Path, tensors: Mapping[str, Stored], shape: ModelShape, text_only: bool = False) -> None:
    """Compare the tensors of a folder with those that its configuration describes.

    Args:
        text_only: what a vision tower has may be missing.

    Raises:
        CheckpointError: a tensor is missing, unexplained, quantised, or of another shape, or a head of its own would be
            lost because the configuration ties it to the embedding.
    """
    table = entries(weight_map(shape), "local")
    wanted = {
        name: (size, entry.rule)
        for entry in table
        for name, size in zip(entry.hf_names, entry.layout.hf_shapes, strict=True)
    }
    for name, (size, rule) in wanted.items():
        _check_tensor(folder, name, tensors.get(name), size, rule, text_only)
    ignored = left_out(tensors, shape)
    if HEAD in ignored:
        _require_same(folder, tensors[HEAD], tensors[embedding_of(shape)])
    if unused := sorted(tensors.keys() - wanted.keys() - ignored):
        raise CheckpointError(
            f"{folder} holds {len(unused)} tensors that its config.json does not explain: {unused[:5]}",
            "The folder may belong to another model family than its config.json says.",
        )


def left_out(names: Iterable[str], shape: ModelShape) -> set[str]:
    """Those of a folder's tensors that the model has not, and need not: a head that is the embedding, and what its
    family leaves out."""
    ignored = family(shape.family).ignored(shape)
    return {name for name in names if name.startswith(ignored) or (shape.tied and name == HEAD)}


def embedding_of(shape: ModelShape) -> str:
    """The Hugging Face name of the embedding."""
    return next(rule.hf[0] for rule in weight_map(shape) if rule.part == "embedding")


def _require_same(folder: Path, head: Stored, embedding: Stored) -> None:
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype) or not _same_bytes(head, embedding):
        raise CheckpointError(
            f"config.json of {folder} says tie_word_embeddings: true, but {head.name!r} in {head.chunks[0].file} is "
            f"not {embedding.name!r}: it was trained by itself, and would be lost",
            "To keep it, set tie_word_embeddings to false in config.json; to go on with the embedding, remove it from "
            "the files.",
        )


def _same_bytes(one: Stored, other: Stored) -> bool:
    """Of two tensors of one size, each of which is one chunk."""
    (a,), (b,), left = one.chunks, other.chunks, one.nbytes
    with a.file.open("rb") as first, b.file.open("rb") as second:
        first.seek(a.offset)
        second.seek(b.offset)
        while left > 0:
            part = min(left, _PART)
            if first.read(part) != second.read(part):
                return False
            left -= part
    return True


def _check_tensor(folder: Path, name: str, found: Stored | None, size: Size, rule: Rule, text_only: bool) -> None:
    if found is None:
        if text_only and rule.part == "vision":
            return
        raise CheckpointError(f"tensor {name!r} is missing from {folder}")
    require_floating(found)
    if found.shape != size:
        raise CheckpointError(
            f"tensor {name!r} in {found.chunks[0].file} has the shape {found.shape}, but config.json asks for {size}"
        )


def require_floating(tensor: Stored) -> None:
    """Refuse what holds parts of numbers.

    Raises:
        CheckpointError: the tensor's dtype is none of plain floating point.
    """
    if tensor.dtype not in FLOATING:
        raise CheckpointError(
            f"tensor {tensor.name!r} in {tensor.chunks[0].file} is {tensor.dtype}: quantised models are neither "
            "trained nor converted",
            "Convert it to bfloat16 with the tool that its authors give first.",
        )
