"""Reading and writing Hugging Face model folders, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from grpo_hpc.models.layouts import Sliceable
from grpo_hpc.models.on_disk.companions import companions, with_defaults
from grpo_hpc.models.on_disk.model_folder import INDEX, read_model

DEFAULT_SHARD_BYTES = 5 * 10**9


class HfFolder:
    """The tensors of a model folder; opened once, read only where they are sliced.

    Raises:
        CheckpointError: as :func:`grpo_hpc.models.on_disk.model_folder.read_model`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tensors = read_model(self.path)
        self._open: dict[Path, Any] = {}

    def slice(self, name: str) -> Sliceable:
        """The tensor, unread until it is indexed."""
        file = self.tensors[name].chunks[0].file
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        found: Sliceable = self._open[file].get_slice(name)
        return found


def write_hf_folder(
    tensors: Iterable[tuple[str, Tensor]],
    target: Path,
    source: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    float32: tuple[str, ...] = (),
    template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write ``tensors`` as a model folder beside the configuration and tokenizer of ``source``.

    The folder appears under its name only when it is whole; at most ``shard_bytes`` are held at a time.

    Args:
        tensors: names and values, consumed once, in order.
        metadata: strings kept in ``grpo_hpc.json`` (where these weights come from).
        dtype: of the written tensors.
        float32: ends of the names of those that are float32 whatever the others are.
        template_kwargs: what the chat template shall take for told.
    """
    building = target.with_name(target.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    files = companions(source, str(dtype).removeprefix("torch."))
    for name, content in (files | with_defaults(files, template_kwargs or {})).items():
        (building / name).parent.mkdir(exist_ok=True)
        (building / name).write_bytes(content)
    precise = ((name, tensor, torch.float32 if name.endswith(float32) else dtype) for name, tensor in tensors)
    _write_shards(precise, building, shard_bytes)
    (building / "grpo_hpc.json").write_text(json.dumps(dict(metadata), indent=1) + "\n")
    if target.exists():
        shutil.rmtree(target)
    building.rename(target)


def _write_shards(tensors: Iterable[tuple[str, Tensor, torch.dtype]], folder: Path, shard_bytes: int) -> None:
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal held, size
        shards.append(list(held))
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        held, size = {}, 0

    for name, tensor, dtype in tensors:
        # a clone: the stream may reuse its buffers, and slices of one storage cannot be saved
        held[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        size += held[name].nbytes
        total += held[name].nbytes
        if size >= shard_bytes:
            flush()
    if held:
        flush()
    _name_shards(folder, shards, total)


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> None:
    if len(shards) == 1:
        (folder / "shard-1").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
