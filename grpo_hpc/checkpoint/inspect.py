"""What is in a folder: a tree of modules with shapes, sizes and chunks, and where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from grpo_hpc.checkpoint.folders import Folder
from grpo_hpc.models.families import FAMILIES
from grpo_hpc.models.families.read_shape import read_config
from grpo_hpc.models.families.relatives import Relative, nearest
from grpo_hpc.models.on_disk.stored import Stored


@dataclass
class Node:
    """A module, or a tensor when it has no children; numbered modules of one structure are one node.

    Attributes:
        count: how many alike it stands for.
    """

    name: str
    nbytes: int = 0
    count: int = 1
    tensor: Stored | None = None
    children: dict[str, Node] = field(default_factory=dict)


def tree(folder: Folder) -> Node:
    """All tensors by module; layers and experts of the same structure are shown once."""
    root = Node(folder.path.name)
    for stored in folder.tensors.values():
        node = root
        node.nbytes += stored.nbytes
        for name in stored.name.split("."):
            node = node.children.setdefault(name, Node(name))
            node.nbytes += stored.nbytes
        node.tensor = stored
    _fold(root)
    return root


def _fold(node: Node) -> None:
    for child in node.children.values():
        _fold(child)
    alike: dict[str, list[Node]] = {}
    for name, child in node.children.items():
        alike.setdefault(_structure(child) if name.isdigit() else name, []).append(child)
    node.children = {_label(nodes): _joined(nodes) for nodes in alike.values()}


def _structure(node: Node) -> str:
    inner = ",".join(name + _structure(child) for name, child in node.children.items())
    return f"({inner})" if node.tensor is None else f"{node.tensor.shape}{node.tensor.dtype}"


def _label(nodes: list[Node]) -> str:
    numbers = sorted(int(node.name) for node in nodes) if nodes[0].name.isdigit() else []
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else nodes[0].name


def _joined(nodes: list[Node]) -> Node:
    first = nodes[0]
    return Node(_label(nodes), sum(node.nbytes for node in nodes), len(nodes), first.tensor, first.children)


def summary(folder: Folder) -> dict[str, Any]:
    """Facts about a folder as JSON-safe values."""
    files = sorted({chunk.file for stored in folder.tensors.values() for chunk in stored.chunks})
    known = folder.manifest or {}
    return {
        "path": str(folder.path),
        "kind": folder.kind,
        "family": known.get("family"),
        "step": _step(folder) if (folder.path.parent / "state.json").exists() else known.get("step"),
        "layout": known.get("layout") or _written_by(folder),
        "tensors": len(folder.tensors),
        "chunks": sum(len(stored.chunks) for stored in folder.tensors.values()),
        "objects": len(folder.objects),
        "bytes": sum(stored.nbytes for stored in folder.tensors.values()),
        "dtypes": sorted({stored.dtype for stored in folder.tensors.values()}),
        "files": {file.name: file.stat().st_size for file in files},
        "digests": folder.manifest is not None,
        "optimizer": any(name.startswith("optimizer") for name in folder.tensors),
    }


def relative_of(folder: Folder) -> Relative | None:
    """The family that a model folder of an unknown one resembles most; None of a known one, or where none does."""
    if folder.kind != "hf":
        return None
    config = read_config(folder.path)
    if config.get("model_type") in FAMILIES:
        return None
    return nearest(config, {name: stored.shape for name, stored in folder.tensors.items()})


def described(relative: Relative) -> Iterator[str]:
    """A relative in lines for people."""
    yield f"this family is not supported; the nearest that is: {relative.family}"
    yield f"  {relative.share:.0%} of the tensors of both have the same names"
    yield from (f"  {relative.family} cannot have {said}" for said in relative.refused)
    if relative.unread:
        yield f"  no supported family reads these options: {', '.join(relative.unread)}"
    yield from (f"  not in {relative.family}: {name}" for name in relative.unknown)
    yield from (f"  only in {relative.family}: {name}" for name in relative.missing)
    for name, size, own in relative.sizes:
        yield f"  {name} is {list(size)}, in {relative.family} it would be {list(own)}"
    yield "docs/adding_a_family.md says how a family is added"


def _step(folder: Folder) -> int | None:
    """The step of the training checkpoint around a folder; None where its record cannot be read."""
    try:
        return int(json.loads((folder.path.parent / "state.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def _written_by(folder: Folder) -> dict[str, int] | None:
    """Ranks that wrote a Megatron checkpoint, by the names of its files."""
    found = [re.fullmatch(r"__(\d+)_\d+\.distcp", file.name) for file in folder.path.glob("*.distcp")]
    ranks = {int(match[1]) for match in found if match}
    return {"ranks": max(ranks) + 1} if ranks else None
