"""Reading and writing Hugging Face model folders, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.layouts import Sliceable

INDEX = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 5 * 10**9


class HfFolder:
    """The tensors of a model folder; opened once, read only where they are sliced."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"no *.safetensors files in {self.path}")
        self._files: dict[str, safe_open] = {}
        for file in files:
            try:
                handle = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
            for name in handle.keys():  # noqa: SIM118  (a safe_open is no mapping)
                if name in self._files:
                    raise CheckpointError(f"tensor {name!r} is in more than one file of {self.path}")
                self._files[name] = handle

    def names(self) -> set[str]:
        return set(self._files)

    def slice(self, name: str) -> Sliceable:
        """The tensor, unread until it is indexed.

        Raises:
            CheckpointError: there is no such tensor.
        """
        return self._slice(name)

    def size(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the head of its file.

        Raises:
            CheckpointError: there is no such tensor.
        """
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        if name not in self._files:
            raise CheckpointError(f"tensor {name!r} is missing from {self.path}")
        return self._files[name].get_slice(name)


def write_hf_folder(
    tensors: Iterable[tuple[str, Tensor]],
    target: Path,
    source: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    float32: tuple[str, ...] = (),
) -> None:
    """Write ``tensors`` as a model folder beside the configuration and tokenizer of ``source``.

    The folder appears under its name only when it is whole; at most ``shard_bytes`` are held at a time.

    Args:
        tensors: names and values, consumed once, in order.
        metadata: strings kept in ``grpo_hpc.json`` (where these weights come from).
        dtype: of the written tensors.
        float32: ends of the names of those that are float32 whatever the others are.
    """
    building = target.with_name(target.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    _copy_companions(source, building, dtype)
    precise = ((name, tensor, torch.float32 if name.endswith(float32) else dtype) for name, tensor in tensors)
    _write_shards(precise, building, shard_bytes)
    (building / "grpo_hpc.json").write_text(json.dumps(dict(metadata), indent=1) + "\n")
    if target.exists():
        shutil.rmtree(target)
    building.rename(target)


def _copy_companions(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Configuration, tokenizer, chat template: every small file of the source that is no weight."""
    for file in source.iterdir():
        if file.is_file() and file.suffix in {".json", ".txt", ".model", ".jinja"} and file.name != INDEX:
            shutil.copyfile(file, target / file.name)
    config = json.loads((target / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


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
