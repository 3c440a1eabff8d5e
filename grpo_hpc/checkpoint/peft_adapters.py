"""Low-rank adapters in PEFT's format: merged into a model, or extracted from two models.

PEFT names the pair of a linear layer ``base_model.model.<layer>.lora_A.weight`` [rank, in] and ``lora_B.weight``
[out, rank]; its weight gains ``alpha / rank * B @ A`` (Hu et al., arXiv 2106.09685), or ``alpha / sqrt(rank) * B @ A``
with ``use_rslora`` (arXiv 2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.checkpoint.copying import Add, Job, Target
from grpo_hpc.checkpoint.folders import INDEX, Folder
from grpo_hpc.checkpoint.naming import Parallel, model_names
from grpo_hpc.checkpoint.planning import about, companions, with_checks
from grpo_hpc.checkpoint.reshard import recut
from grpo_hpc.checkpoint.run import Plan
from grpo_hpc.checkpoint.safetensors_file import plan_file, read_tensors
from grpo_hpc.checkpoint.stored import Stored
from grpo_hpc.checkpoint.to_megatron import check_tensors, hf_names
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.weight_map import Rule

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Pair:
    """The adapter of one linear layer."""

    up: Stored
    down: Stored
    scale: float


def read_adapter(folder: Path) -> dict[str, Pair]:
    """The pairs of a PEFT adapter by the Hugging Face name of the weight they belong to.

    Raises:
        CheckpointError: it is no LoRA adapter, or has parts that cannot be merged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from error
    _require_plain(folder, config)
    tensors, pairs = read_tensors(folder / WEIGHTS), {}
    for name, down in tensors.items():
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_A\.weight", name)
        if match is None:
            if not name.endswith(".lora_B.weight"):
                raise CheckpointError(f"{folder / WEIGHTS} holds {name!r}, which cannot be merged")
            continue
        module = match[1]
        up = tensors.get(f"{PREFIX}{module}.lora_B.weight")
        if up is None or len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0]:
            raise CheckpointError(f"{module!r} in {folder / WEIGHTS} has no pair of matrices of one rank")
        pairs[module + ".weight"] = Pair(up, down, _scale(config, module))
    if not pairs or 2 * len(pairs) != len(tensors):
        raise CheckpointError(f"{folder / WEIGHTS} holds {len(tensors)} tensors, of which {2 * len(pairs)} are pairs")
    return pairs


def _require_plain(folder: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder} holds a {config.get('peft_type')} adapter, not LORA")
    for key in (
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "modules_to_save",
        "trainable_token_indices",
        "target_parameters",
    ):
        if config.get(key):
            raise CheckpointError(f"{folder / CONFIG}: {key}: {config[key]!r} is not supported")


def _scale(config: dict[str, Any], module: str) -> float:
    def value(key: str, pattern: str) -> float:
        for layer, own in (config.get(pattern) or {}).items():
            if re.fullmatch(rf"(.*\.)?({layer})", module):
                return float(own)
        return float(config[key])

    rank, alpha = value("r", "rank_pattern"), value("lora_alpha", "alpha_pattern")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def plan_merge(base: Folder, adapter: dict[str, Pair]) -> Plan:
    """The base model with the adapter merged, in the base's format; optimizer state is left out.

    Raises:
        CheckpointError: the adapter does not belong to the base.
    """
    if base.kind == "hf":
        return _merge_hf(base, adapter)
    left = set(adapter)

    def adds(rule: Rule, layer: int, expert: int, rows: slice, columns: slice | None) -> Sequence[Add]:
        names, found, at = hf_names(rule, layer, expert), [], 0
        for part in rule.layout.rows(rows.start, rows.stop):
            pair = adapter.get(names[part.source]) if part.source is not None else None
            if pair is not None and columns is not None and part.source is not None:
                name = names[part.source]
                left.discard(name)
                _require_shape(name, rule.layout.hf_shapes[part.source], pair)
                dtype = next(iter(base.tensors.values())).dtype
                span = (columns.start, columns.stop)
                found.append(Add(at, len(part), part.start, span, pair.up, pair.down, pair.scale, dtype))
            at += len(part)
        return found

    layout = (base.manifest or {}).get("layout") or {}
    plan = recut(base, Parallel(**layout), model_names(base.tensors), adds)
    _require_used(left)
    return plan


def _merge_hf(base: Folder, adapter: dict[str, Pair]) -> Plan:
    shape = read_shape(base.path)
    dtype = check_tensors(base, shape)
    files = companions(base.path, dtype)
    small: list[tuple[str, int | None, bytes]] = [(name, None, content) for name, content in files.items()]
    if (base.path / INDEX).exists():
        small.append((INDEX, None, (base.path / INDEX).read_bytes()))
    sizes: dict[str, int] = {}
    jobs: list[Job] = []
    by_file: dict[Path, list[Stored]] = {}
    for stored in base.tensors.values():
        by_file.setdefault(stored.chunks[0].file, []).append(stored)
    for file, tensors in by_file.items():
        header, places = plan_file([(t.name, t.dtype, t.shape) for t in tensors])
        small.append((file.name, 0, header))
        sizes[file.name] = places[-1].offset + places[-1].nbytes
        for stored, place in zip(tensors, places, strict=True):
            rows = stored.shape[0]
            blocks = tuple(stored.blocks((), slice(0, rows)))
            adds = _whole(stored, adapter[stored.name]) if stored.name in adapter else ()
            width = place.nbytes // rows
            jobs.append(Job((Target(place.name, Path(file.name), place.offset, b"", b"", rows, width, blocks, adds),)))
    _require_used(set(adapter) - set(base.tensors))
    return Plan(sizes, with_checks(jobs, base.checks()), tuple(small), about(base, "hf", shape, None))


def _whole(stored: Stored, pair: Pair) -> tuple[Add, ...]:
    _require_shape(stored.name, stored.shape, pair)
    return (Add(0, stored.shape[0], 0, (0, stored.shape[1]), pair.up, pair.down, pair.scale, stored.dtype),)


def _require_shape(name: str, shape: tuple[int, ...], pair: Pair) -> None:
    made = (pair.up.shape[0], pair.down.shape[1])
    if made != shape:
        raise CheckpointError(f"the adapter of {name!r} makes a matrix {made}, but the weight is {shape}")


def _require_used(left: set[str]) -> None:
    if left:
        raise CheckpointError(
            f"{len(left)} weights that the adapter changes are not in the base model: {sorted(left)[:5]}",
            "The adapter was trained on another model.",
        )


def extract(base: Folder, tuned: Folder, target: Path, rank: int) -> dict[str, float]:
    """Write the difference of two Hugging Face folders as a PEFT adapter.

    Every linear layer that differs gets the best pair of that rank (Eckart-Young: the leading singular vectors), tensor
    by tensor in float32. Differences of no higher rank, such as a merged adapter's, come back to rounding.

    Returns:
        for each changed weight the part of the difference's norm that the pair misses.

    Raises:
        CheckpointError: the folders are not models of one shape, or something besides linear layers differs.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    if base.kind != "hf" or tuned.kind != "hf":
        raise CheckpointError("extract-lora reads Hugging Face folders", "Convert the checkpoint first (--to hf).")
    if {n: t.shape for n, t in base.tensors.items()} != {n: t.shape for n, t in tuned.tensors.items()}:
        raise CheckpointError(f"{base.path} and {tuned.path} have other tensors or shapes")
    if target.exists():
        raise CheckpointError(f"{target} exists already", "Choose another name, or remove it.")
    pairs: dict[str, Any] = {}
    missed: dict[str, float] = {}

    def value(folder: Folder, name: str) -> Any:
        with safe_open(folder.tensors[name].chunks[0].file, "pt") as file:
            return file.get_tensor(name).float()

    for name, stored in base.tensors.items():
        difference = value(tuned, name) - value(base, name)
        if not difference.any():
            continue
        if len(stored.shape) != 2 or not name.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")):
            raise CheckpointError(f"{name!r} differs too, and an adapter of linear layers cannot hold that")
        u, s, v = torch.linalg.svd(difference, full_matrices=False)
        width = min(rank, len(s))
        root, module = s[:width].sqrt(), PREFIX + name.removesuffix(".weight")
        pairs[f"{module}.lora_A.weight"] = (root[:, None] * v[:width]).contiguous()
        pairs[f"{module}.lora_B.weight"] = (u[:, :width] * root).contiguous()
        missed[name] = float(s[width:].norm() / s.norm())
    if not pairs:
        raise CheckpointError(f"{base.path} and {tuned.path} are the same model")
    building = target.with_name(target.name + ".partial")
    building.mkdir(parents=True, exist_ok=True)
    save_file(pairs, building / WEIGHTS, metadata={"format": "pt"})
    (building / CONFIG).write_text(json.dumps(_config(base, pairs, rank), indent=2) + "\n")
    building.rename(target)
    return missed


def _config(base: Folder, pairs: dict[str, Any], rank: int) -> dict[str, Any]:
    modules = sorted({name.split(".")[-3] for name in pairs})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.path.resolve()),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
    }
