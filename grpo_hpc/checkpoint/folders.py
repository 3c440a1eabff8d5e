"""What lies in a folder: a Hugging Face model or a Megatron checkpoint, with all of its tensors as chunks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_hpc.checkpoint import manifest
from grpo_hpc.checkpoint.copies import Check
from grpo_hpc.checkpoint.megatron_folder import read_checkpoint
from grpo_hpc.config.document import read_yaml
from grpo_hpc.errors import CheckpointError, ConfigError
from grpo_hpc.files import read_text
from grpo_hpc.models.on_disk.model_folder import INDEX, read_model
from grpo_hpc.models.on_disk.stored import Stored

LATEST = "latest_checkpointed_iteration.txt"
COMPANIONS = "hf"  # configuration and tokenizer inside a Megatron checkpoint of ours

Kind = Literal["hf", "megatron"]


@dataclass(frozen=True)
class Folder:
    """A model on disk.

    Attributes:
        path: where its files are (of a training checkpoint: its ``megatron`` folder).
        config: folder of the Hugging Face configuration; None when there is none.
        tensors: everything that is stored, by its name there.
        objects: what is stored besides tensors (Megatron), by name: file, offset, bytes.
        home, manifest: our own manifest, if there is one, and the folder that it is in.
    """

    kind: Kind
    path: Path
    config: Path | None
    tensors: dict[str, Stored]
    objects: dict[str, tuple[Path, int, int]]
    home: Path
    manifest: dict[str, Any] | None

    def checks(self) -> list[Check]:
        """Everything of which a digest is known: by our manifest, else by what ``torch.save`` noted."""
        if self.manifest is not None:
            return manifest.checks(self.home, self.manifest)
        return [
            Check(tensor.name, chunk.file, chunk.offset, _nbytes(tensor, chunk.size), chunk.crc)
            for tensor in self.tensors.values()
            for chunk in tensor.chunks
            if chunk.crc is not None
        ]


def _nbytes(tensor: Stored, size: tuple[int, ...]) -> int:
    return Stored(tensor.name, tensor.dtype, size, ()).nbytes


def open_folder(path: Path, config: Path | None = None) -> Folder:
    """Open a model folder or a checkpoint, whichever it is.

    Args:
        config: folder with the Hugging Face configuration of a Megatron checkpoint that carries none.

    Raises:
        CheckpointError: it is neither, or a file of it is missing, truncated, damaged or there twice.
    """
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {path}")
    place = _checkpoint_in(path)
    if (place / ".metadata").exists():
        tensors, objects = read_checkpoint(place)
        own = place / COMPANIONS
        found = config or (own if own.is_dir() else _trained_from(place))
        home = place.parent if place.name == "megatron" and not (place / manifest.NAME).exists() else place
        return Folder("megatron", place, found, tensors, objects, home, manifest.read(home))
    if any(path.glob("*.safetensors")) or (path / INDEX).exists():
        return Folder("hf", path, path, read_model(path), {}, path, manifest.read(path))
    raise CheckpointError(
        f"{path} is neither a Hugging Face model (*.safetensors) nor a Megatron checkpoint (.metadata)",
        "Other formats (*.bin, *.pt, torch-only Megatron checkpoints) are not read.",
    )


def _checkpoint_in(path: Path) -> Path:
    """The folder with the tensors of a training checkpoint, of ours or of Megatron-LM."""
    if (path / "megatron" / ".metadata").exists():
        return path / "megatron"
    if (path / LATEST).exists():
        folder = path / _iteration(path / LATEST)
        if (folder / ".metadata").exists():
            return folder
    return path


def _iteration(file: Path) -> str:
    """The folder that Megatron-LM's file of the latest iteration names: a number, or ``release``."""
    try:
        said = read_text(file, 2**10).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if re.fullmatch(r"[0-9]{1,18}", said):
        return f"iter_{int(said):07d}"
    if said == "release":
        return said
    raise CheckpointError(
        f"{file} says {said[:40]!r}, which is no iteration", "Name the folder of the iteration itself (iter_*)."
    )


def _trained_from(place: Path) -> Path | None:
    """The model folder that a run directory around a training checkpoint names, if it is on this machine."""
    for parent in list(place.parents)[:4]:
        if (parent / "run.yaml").exists():
            try:
                model = Path(read_yaml(parent / "run.yaml", "run file", "name: my-run").values["model"]["path"])
                return model if (model / "config.json").exists() else None
            except (ConfigError, OSError, ValueError, TypeError, LookupError):
                return None  # not a run of ours
    return None
