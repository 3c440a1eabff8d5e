"""Adapters as a folder that `peft` loads: each Hugging Face matrix gets its own A and B.

Matrices that Megatron keeps in one piece (query, key and value; gate and up) share one A here, so each of them is
written with a copy of it and with its own rows of B. The product is the same to the last bit.

Experts are three-dimensional parameters in `transformers`, and `peft` has one A and one B for all experts of a layer:
A [E * r, in] expert by expert, B [out, r * E] with the expert as the fastest index. Of two parameters of one module,
the second (``down_proj``) wraps the first, which is then called ``base_layer``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from safetensors.torch import save_file
from torch import Tensor

from grpo_hpc.control import Control
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.lora import Adapters, adapted_layers
from grpo_hpc.models.movers import dense_place, expert_place, local_parameters
from grpo_hpc.models.on_disk.companions import TEMPLATE, template_with_defaults
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.models.weight_map import Entry, entries, fused_experts

PREFIX = "base_model.model."
_Held = dict[str, dict[int, tuple[Tensor, Tensor]]]  # by weight and tensor-parallel rank: A and B


def gather_adapters(
    models: Sequence[PolicyModel],
    layer_spec: str,
    control: Control,
    values: Callable[[Tensor], Tensor] = lambda p: p.detach(),
) -> dict[str, Tensor]:
    """All adapters under peft's names, on the first rank; empty on the others. Collective.

    Args:
        values: what to gather of each parameter, such as its gradient; by default the parameter itself.
    """
    held: _Held = {}
    for part in control.gather_at_first(_held(models, values), "adapters"):
        for name, shards in part.items():
            held.setdefault(name, {}).update(shards)
    found: dict[str, Tensor] = {}
    experts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for entry in entries(weight_map(models[0].shape), layer_spec):
        if entry.name not in held:
            continue
        a, b = _whole(entry, held[entry.name])
        if entry.rule.experts:
            target = PREFIX + ".".join(fused_experts(entry.hf_names))
            experts.setdefault(target, []).append((a, torch.cat(b)))
        else:
            for hf_name, piece in zip(entry.hf_names, b, strict=True):
                module = PREFIX + hf_name.removesuffix(".weight")
                found |= {f"{module}.lora_A.weight": a.clone(), f"{module}.lora_B.weight": piece.clone()}
    return found | _fused(experts)


def _whole(entry: Entry, shards: dict[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """A, and B of each Hugging Face matrix, from those of the tensor-parallel ranks."""
    pairs = [shards[rank] for rank in sorted(shards)]
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if entry.layout.axis == 1:
        return entry.layout.to_hf(a)[0], [b[0]]
    return a[0], list(entry.layout.to_hf(b))


def _fused(experts: dict[str, list[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    """peft's tensors of the experts of each layer, from those of each expert in order."""
    found = {}
    for target, factors in experts.items():
        at, _, name = target.rpartition(".")
        inner = name == "gate_up_proj" and f"{at}.down_proj" in experts
        module = f"{at}.base_layer" if inner else at
        found[f"{module}.lora_A.weight"] = torch.cat([a for a, _ in factors])
        found[f"{module}.lora_B.weight"] = torch.stack([b for _, b in factors], dim=-1).flatten(1)
    return found


def _held(models: Sequence[PolicyModel], values: Callable[[Tensor], Tensor]) -> _Held:
    """What this rank holds, if it is the first of those that hold the same."""
    names = {id(parameter): name for name, parameter in local_parameters(models).items()}
    held: _Held = {}
    for layer in (layer for model in models for layer in adapted_layers(model)):
        replica = mpu.get_data_parallel_rank(with_context_parallel=True)
        if layer.lora_expert:
            replica = mpu.get_expert_data_parallel_rank()
        if replica == 0:
            place = expert_place() if layer.lora_expert else dense_place()
            held[names[id(layer.weight)]] = {place.rank: (values(layer.lora_a).cpu(), values(layer.lora_b).cpu())}
    return held


def write_adapter(
    folder: Path,
    tensors: dict[str, Tensor],
    adapters: Adapters,
    base: str,
    template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``; the folder appears when it is whole.

    Args:
        base: the model folder that the adapters belong to.
        template_kwargs: what its chat template was told; with any, the template that takes it for told is written, too.
    """
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save_file(tensors, building / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = {name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name}
    linears, parameters = _targets(modules, adapters)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": adapters.dropout,
        "use_rslora": adapters.rslora,
        "target_modules": linears or None,
        "target_parameters": parameters or None,
        "bias": "none",
        "inference_mode": True,
    }
    (building / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if template_kwargs:
        (building / TEMPLATE).write_text(template_with_defaults(Path(base), template_kwargs))
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def _targets(modules: set[str], adapters: Adapters) -> tuple[list[str], list[str]]:
    """What `peft` calls target_modules and target_parameters.

    In a model with experts `peft` takes ``gate_proj``, ``up_proj`` and ``down_proj`` for those of experts from the time
    when each was a module. So where dense layers and shared experts have some, they are named as parameters, too.
    """
    plain = {tuple(name.split(".")[-2:]) for name in modules if ".experts" not in name}
    if len(plain) == len({tuple(name.split(".")[-2:]) for name in modules}):
        return sorted({leaf for _, leaf in plain}), []
    fused = {"linear_fc1": "mlp.experts.gate_up_proj", "linear_fc2": "mlp.experts.down_proj"}
    experts = [name for linear, name in fused.items() if linear in adapters.linears]  # wrapped in this order
    beside = sorted(f"{at}.{leaf}.weight" for at, leaf in plain if at != "self_attn")
    return sorted({leaf for at, leaf in plain if at == "self_attn"}), experts + beside
