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

from grpo_hpc.checkpoint.building import building
from grpo_hpc.checkpoint.copies import Add, Job, Target
from grpo_hpc.checkpoint.folders import Folder
from grpo_hpc.checkpoint.naming import Parallel, model_names
from grpo_hpc.checkpoint.planning import about, with_checks
from grpo_hpc.checkpoint.reshard import recut
from grpo_hpc.checkpoint.run import Plan
from grpo_hpc.checkpoint.to_megatron import check_tensors, hf_names
from grpo_hpc.errors import CheckpointError
from grpo_hpc.files import read_text
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.on_disk.companions import TEMPLATE, companions
from grpo_hpc.models.on_disk.model_folder import INDEX
from grpo_hpc.models.on_disk.safetensors_file import plan_file, read_tensors
from grpo_hpc.models.on_disk.stored import Stored
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule, fused_experts

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_LARGEST = 2**24  # bytes of a configuration


# Settings that say nothing about the product, or that are read below.
_READ = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "bias"),
    *("task_type", "inference_mode", "peft_version", "auto_mapping", "base_model_class", "base_model_name_or_path"),
    *("revision", "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "runtime_config"),
)
# Initial values that leave the base as it is. All others take a part of it out, which the adapter alone does not tell.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_SUBTRACTED = re.compile(r"pissa(_niter_\d+)?|olora|corda|lora_ga")
_BY_PEFT = "Let peft do it: PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(DST)."


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter as it lies in its folder.

    Attributes:
        pairs: the matrices A and B of each module, by its name in ``transformers``.
    """

    folder: Path
    config: dict[str, Any]
    pairs: dict[str, tuple[Stored, Stored]]

    @property
    def template(self) -> dict[str, bytes]:
        """The chat template that the adapter was trained with, where its folder has one: a file of the merged model."""
        file = self.folder / TEMPLATE
        return {TEMPLATE: file.read_bytes()} if file.exists() else {}

    def scale(self, target: str, down: Stored, experts: int = 1) -> float:
        """What B A is multiplied with: of a module, or of the parameter ``target`` of all experts.

        Raises:
            CheckpointError: A [experts * rank, in] is not of the rank that the configuration says.
        """
        rank, alpha = self._of("r", "rank_pattern", target), self._of("lora_alpha", "alpha_pattern", target)
        if down.shape[0] != experts * rank:
            raise CheckpointError(
                f"{down.name!r} in {self.folder / WEIGHTS} is {list(down.shape)}, but {CONFIG} says rank {rank:g}"
                + (f" for each of {experts} experts" if experts > 1 else "")
            )
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _of(self, key: str, pattern: str, target: str) -> float:
        parameters = self.config.get("target_parameters") or []
        name = f"{target}.weight" if any(f".{target}.weight".endswith(f".{p}") for p in parameters) else target
        for layer, own in (self.config.get(pattern) or {}).items():
            if re.fullmatch(rf"(.*\.)?({layer})", name):
                return float(own)
        return float(self.config[key])


@dataclass(frozen=True)
class Pair:
    """The adapter of one weight.

    Attributes:
        inner: first column of ``up`` that is this weight's, and the step to the next; E with one B for E experts.
    """

    up: Stored
    down: Stored
    scale: float
    inner: tuple[int, int] = (0, 1)


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder that PEFT wrote.

    Raises:
        CheckpointError: it is no LoRA adapter, or has parts that cannot be merged.
    """
    try:
        config = dict(json.loads(read_text(folder / CONFIG, _LARGEST)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from error
    _require_plain(folder, config)
    tensors, pairs = read_tensors(folder / WEIGHTS), {}
    for name, down in tensors.items():
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_A\.weight", name)
        if match is None:
            if not name.endswith(".lora_B.weight"):
                raise CheckpointError(f"{folder / WEIGHTS} holds {name!r}, which cannot be merged", _BY_PEFT)
            continue
        module = match[1]
        up = tensors.get(f"{PREFIX}{module}.lora_B.weight")
        if up is None or len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0]:
            raise CheckpointError(f"{module!r} in {folder / WEIGHTS} has no pair of matrices of one rank")
        pairs[module] = (down, up)
    if not pairs or 2 * len(pairs) != len(tensors):
        raise CheckpointError(f"{folder / WEIGHTS} holds {len(tensors)} tensors, of which {2 * len(pairs)} are pairs")
    return Adapter(folder, config, pairs)


def _require_plain(folder: Path, config: dict[str, Any]) -> None:
    """Refuse every setting that is not known to leave the product ``scale * B A`` as it is."""
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder} holds a {config.get('peft_type')} adapter, not LORA", _BY_PEFT)
    if missing := [key for key in ("r", "lora_alpha") if not _is_number(config.get(key))]:
        raise CheckpointError(f"{folder / CONFIG} has no number for {' and '.join(missing)}")
    _require_forms(folder, config)
    start = config.get("init_lora_weights", True)
    if start is not None and start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{folder / CONFIG}: init_lora_weights: {start!r} takes a part out of the base before training, so base "
            "and adapter do not add up to the trained model",
            _without_subtraction(str(start)),
        )
    if config.get("bias") not in (None, "none"):
        raise CheckpointError(f"{folder / CONFIG}: bias: {config['bias']!r}: trained biases are not merged", _BY_PEFT)
    for key, value in config.items():
        if key not in _READ and value not in (None, False, [], {}):
            raise CheckpointError(f"{folder / CONFIG}: {key}: {value!r} is not supported", _BY_PEFT)


def _require_forms(folder: Path, config: dict[str, Any]) -> None:
    for key in ("rank_pattern", "alpha_pattern"):
        found = config.get(key) or {}
        if not (isinstance(found, dict) and all(map(_is_pattern, found)) and all(map(_is_number, found.values()))):
            raise CheckpointError(f"{folder / CONFIG}: {key}: {found!r} does not give a number for every pattern")
    names = config.get("target_parameters") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{folder / CONFIG}: target_parameters: {names!r} is no list of names")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _without_subtraction(start: str) -> str:
    if not _SUBTRACTED.fullmatch(start):
        return "Merge it with the tool that trained it, into the base that it was trained on."
    return (
        "Make it a plain adapter where it was trained: save the adapter before training, with init_lora_weights set to "
        "True in its configuration, and after it model.save_pretrained(ADAPTER, "
        "path_initial_model_for_weight_conversion=<that folder>)."
    )


def _pairs(adapter: Adapter, shape: ModelShape) -> dict[str, Pair]:
    """The pairs by the Hugging Face name of the weight that they belong to.

    Experts are one parameter [E, out, in] in ``transformers``, and have one A [E * r, in] and one B [out, r * E] with
    the expert as the fastest index: each gets its rows of A and its columns of B, gate and up half of B's rows.
    """
    found: dict[str, Pair] = {}
    left = dict(adapter.pairs)
    for rule in weight_map(shape):
        for layer in rule.layers if rule.experts else ():
            names = [hf_names(rule, layer, expert) for expert in range(rule.experts)]
            module, parameter = fused_experts(names[0])
            for name in (module, f"{module}.base_layer"):
                if name in left and _fits(left[name], rule.layout.hf_shapes):
                    down, up = left.pop(name)
                    scale = adapter.scale(f"{module}.{parameter}", down, rule.experts)
                    found |= _of_experts(names, down, up, scale)
                    break
    for module, (down, up) in left.items():
        found[f"{module}.weight"] = Pair(up, down, adapter.scale(module, down))
    return found


def _fits(pair: tuple[Stored, Stored], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether the product has the rows of all matrices of an expert and their columns: which parameter it adapts."""
    down, up = pair
    return (up.shape[0], down.shape[1]) == (sum(shape[0] for shape in shapes), shapes[0][1])


def _of_experts(names: list[list[str]], down: Stored, up: Stored, scale: float) -> dict[str, Pair]:
    """The pair of each matrix of each expert; ``names`` by expert."""
    count, found = len(names), {}
    rank, rows = down.shape[0] // count, up.shape[0] // len(names[0])
    for expert, matrices in enumerate(names):
        for number, name in enumerate(matrices):
            found[name] = Pair(up.rows(number * rows, rows), down.rows(expert * rank, rank), scale, (expert, count))
    return found


def plan_merge(base: Folder, adapter: Adapter) -> Plan:
    """The base model with the adapter merged, in the base's format; optimizer state is left out.

    Raises:
        CheckpointError: the adapter does not belong to the base.
    """
    if base.kind == "hf":
        return _merge_hf(base, adapter)
    if base.config is None:
        raise CheckpointError(f"{base.path} has no Hugging Face configuration", "Name its folder with --hf-config.")
    pairs = _pairs(adapter, read_shape(base.config))
    left = set(pairs)

    def adds(stored: Stored, rule: Rule, layer: int, expert: int, rows: slice, columns: slice | None) -> Sequence[Add]:
        names, found, at = hf_names(rule, layer, expert), [], 0
        for part in rule.layout.rows(rows.start, rows.stop):
            pair = pairs.get(names[part.source]) if part.source is not None else None
            if pair is not None and columns is not None and part.source is not None:
                name = names[part.source]
                left.discard(name)
                _require_shape(name, rule.layout.hf_shapes[part.source], pair)
                found.append(_add(pair, at, len(part), part.start, (columns.start, columns.stop), stored.dtype))
            at += len(part)
        return found

    layout = (base.manifest or {}).get("layout") or {}
    plan = recut(base, Parallel(**layout), model_names(base.tensors), adds)
    _require_used(left)
    return plan


def _merge_hf(base: Folder, adapter: Adapter) -> Plan:
    shape = read_shape(base.path)
    dtype, pairs = check_tensors(base, shape), _pairs(adapter, shape)
    files = companions(base.path, dtype) | adapter.template
    small: list[tuple[str, int | None, bytes]] = [(name, None, content) for name, content in files.items()]
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
            adds = _whole(stored, pairs[stored.name]) if stored.name in pairs else ()
            width = place.nbytes // rows
            jobs.append(Job((Target(place.name, Path(file.name), place.offset, b"", b"", rows, width, blocks, adds),)))
    if (base.path / INDEX).exists():
        named = {name: stored.chunks[0].file.name for name, stored in base.tensors.items()}
        index = {"metadata": {"total_size": sum(t.nbytes for t in base.tensors.values())}, "weight_map": named}
        small.append((INDEX, None, (json.dumps(index, indent=1) + "\n").encode()))
    _require_used(set(pairs) - set(base.tensors))
    return Plan(sizes, with_checks(jobs, base.checks()), tuple(small), about(base, "hf", shape, None))


def _whole(stored: Stored, pair: Pair) -> tuple[Add, ...]:
    _require_shape(stored.name, stored.shape, pair)
    return (_add(pair, 0, stored.shape[0], 0, (0, stored.shape[1]), stored.dtype),)


def _add(pair: Pair, row: int, rows: int, first: int, columns: tuple[int, int], dtype: str) -> Add:
    return Add(row, rows, first, columns, pair.up, pair.down, pair.scale, dtype, pair.inner)


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
    with building(target) as (place, _):
        save_file(pairs, place / WEIGHTS, metadata={"format": "pt"})
        (place / CONFIG).write_text(json.dumps(_config(base, pairs, rank), indent=2) + "\n")
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
