"""The supported model families. A family is one file: how its config.json is read, weight map, Megatron options.

Beside them: how a configuration is read with them, and what their weight maps add up to. All of it is free of torch.
To add a family, write its file and name it in ``_FAMILIES`` under its folder.
"""

from __future__ import annotations

from importlib import import_module

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.family import Family
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule, entries

_FAMILIES = {
    "dense": (
        *("llama", "mistral", "qwen2", "qwen3", "seed_oss", "smollm3", "phi3", "ernie4_5", "ministral3"),
        *("glm4", "olmo2", "granite", "hunyuan_v1_dense"),
    ),
    "experts": (
        *("qwen3_moe", "mixtral", "deepseek_v3", "olmoe", "qwen2_moe", "kimi_k2", "glm4_moe", "glm4_moe_lite"),
        *("minimax_m2", "hy_v3", "deepseek_v2", "ernie4_5_moe"),
    ),
    "vision_language": ("qwen2_5_vl", "qwen3_vl"),
}
FAMILIES = tuple(name for names in _FAMILIES.values() for name in names)
_FOLDERS = {model_type: folder for folder, model_types in _FAMILIES.items() for model_type in model_types}
_RENAMED = {"mimo": ("qwen2", "Qwen2ForCausalLM"), "internlm3": ("llama", "LlamaForCausalLM")}


def family(model_type: str) -> Family:
    """The family of a Hugging Face ``model_type``.

    Raises:
        CheckpointError: it is not supported.
    """
    if not isinstance(model_type, str):
        raise CheckpointError(f"model_type is {model_type!r:.60}, not a name")
    if model_type in _RENAMED:
        name, architecture = _RENAMED[model_type]
        raise CheckpointError(
            f"model_type {model_type!r}: transformers has no class of that name, but the model is one of {name}",
            f'In its config.json write "model_type": "{name}" and "architectures": ["{architecture}"], and remove '
            '"auto_map"; vLLM and transformers then read it without code of its own.',
        )
    if model_type not in _FOLDERS:
        raise CheckpointError(
            f"model_type {model_type!r} is not supported",
            f"Supported families: {', '.join(FAMILIES)}. `grpo-hpc checkpoint inspect` says which is nearest.",
        )
    module = import_module(f"{__name__}.{_FOLDERS[model_type]}.{model_type}")
    if not isinstance(module.FAMILY, Family):
        raise TypeError(f"{module.__name__}.FAMILY is no Family")
    described: Family = module.FAMILY
    return described


def weight_map(shape: ModelShape) -> list[Rule]:
    """The rules of ``shape``'s family; every parameter of the Megatron model is named exactly once."""
    return family(shape.family).rules(shape)


def synced_names(shape: ModelShape) -> frozenset[str]:
    """Hugging Face names of what a weight sync sends: everything but a vision tower, which is not trained."""
    rows = entries([rule for rule in weight_map(shape) if rule.part != "vision"], "local")
    return frozenset(name for entry in rows if entry.exported for name in entry.hf_names)


__all__ = ["FAMILIES", "Family", "family", "synced_names", "weight_map"]
