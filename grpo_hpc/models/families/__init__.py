"""The supported model families. A family is one file: how its config.json is read, weight map, Megatron options.

Beside them: how a configuration is read with them, and what their weight maps add up to. All of it is free of torch.
To add a family, write its file and name it in ``_FAMILIES``.
"""

from __future__ import annotations

from importlib import import_module

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.family import Family
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule, entries

_FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "deepseek_v3",
    "olmoe",
    "qwen2_5_vl",
    "qwen3_vl",
)


def family(model_type: str) -> Family:
    """The family of a Hugging Face ``model_type``.

    Raises:
        CheckpointError: it is not supported.
    """
    if model_type not in _FAMILIES:
        raise CheckpointError(
            f"model_type {model_type!r} is not supported", f"Supported families: {', '.join(_FAMILIES)}."
        )
    described = import_module(f"{__name__}.{model_type}").FAMILY
    if not isinstance(described, Family):
        raise TypeError(f"{__name__}.{model_type}.FAMILY is no Family")
    return described


def weight_map(shape: ModelShape) -> list[Rule]:
    """The rules of ``shape``'s family; every parameter of the Megatron model is named exactly once."""
    return family(shape.family).rules(shape)


def synced_names(shape: ModelShape) -> frozenset[str]:
    """Hugging Face names of what a weight sync sends: everything but a vision tower, which is not trained."""
    rows = entries([rule for rule in weight_map(shape) if rule.part != "vision"], "local")
    return frozenset(name for entry in rows if entry.exported for name in entry.hf_names)


__all__ = ["Family", "family", "synced_names", "weight_map"]
