"""Adapters as a folder that `peft` loads: each Hugging Face matrix gets its own A and B.

Matrices that Megatron keeps in one piece (query, key and value; gate and up) share one A here, so each of them is
written with a copy of it and with its own rows of B. The product is the same to the last bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state as mpu
from safetensors.torch import save_file
from torch import Tensor

from grpo_hpc.models.families import weight_map
from grpo_hpc.models.lora import Adapters, adapted_layers
from grpo_hpc.models.movers import local_parameters
from grpo_hpc.models.policy import PolicyModel
from grpo_hpc.models.weight_map import entries

PREFIX = "base_model.model."
_Held = dict[str, dict[int, tuple[Tensor, Tensor]]]  # by weight and tensor-parallel rank: A and B


def gather_adapters(
    models: Sequence[PolicyModel], layer_spec: str, values: Callable[[Tensor], Tensor] = lambda p: p.detach()
) -> dict[str, Tensor]:
    """All adapters under peft's names, on the first rank; empty on the others. Collective.

    Args:
        values: what to gather of each parameter, such as its gradient; by default the parameter itself.
    """
    parts: list[_Held | None] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(_held(models, values), parts)
    held: _Held = {}
    for part in parts or []:
        for name, shards in (part or {}).items():
            held.setdefault(name, {}).update(shards)
    found: dict[str, Tensor] = {}
    for entry in entries(weight_map(models[0].shape), layer_spec):
        if entry.name not in held:
            continue
        pairs = [held[entry.name][rank] for rank in sorted(held[entry.name])]
        a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        columns = entry.layout.axis == 1
        whole_a = entry.layout.to_hf(a)[0] if columns else a[0]
        pieces = [b[0]] if columns else entry.layout.to_hf(b)
        for hf_name, piece in zip(entry.hf_names, pieces, strict=True):
            module = PREFIX + hf_name.removesuffix(".weight")
            found[f"{module}.lora_A.weight"] = whole_a.clone()
            found[f"{module}.lora_B.weight"] = piece.clone()
    return found


def _held(models: Sequence[PolicyModel], values: Callable[[Tensor], Tensor]) -> _Held:
    """What this rank holds, if it is the first of those that hold the same."""
    if mpu.get_data_parallel_rank(with_context_parallel=True):
        return {}
    names = {id(parameter): name for name, parameter in local_parameters(models).items()}
    place = mpu.get_tensor_model_parallel_rank()
    return {
        names[id(layer.weight)]: {place: (values(layer.lora_a).cpu(), values(layer.lora_b).cpu())}
        for model in models
        for layer in adapted_layers(model)
    }


def write_adapter(folder: Path, tensors: dict[str, Tensor], adapters: Adapters, base: str) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``; the folder appears when it is whole."""
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save_file(tensors, building / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.removesuffix(".lora_A.weight").rsplit(".", 1)[-1] for name in tensors if ".lora_A." in name})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": adapters.dropout,
        "use_rslora": adapters.rslora,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }
    (building / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
