"""What a model's weight map adds up to: parameters by part, and which layers have a weight matrix. Free of torch."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

from grpo_hpc.errors import ConfigError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.shape import ModelShape


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by what they belong to; those of layers are of *one* layer.

    Attributes:
        norms: all norms of one layer, query and key norms and those of compressed queries and keys included.
        mlp: of a dense layer.
        expert: one routed expert; ``shared_expert``: the one that every token visits.
        output: the output matrix; 0 when it is tied to the embedding.
        vision: the whole vision tower.
    """

    embedding: int
    output: int
    final_norm: int
    attention: int
    norms: int
    mlp: int
    router: int
    expert: int
    shared_expert: int
    vision: int


@functools.lru_cache(maxsize=64)
def count_by_part(shape: ModelShape) -> ParameterCount:
    """Parameters of ``shape`` by part, added up from its weight map."""
    counts = dict.fromkeys(ParameterCount.__dataclass_fields__, 0)
    for rule in weight_map(shape):
        if rule.part == "vision":
            counts["vision"] += rule.parameters * len(rule.layers or (0,))
        elif rule.part != "norm":
            counts[rule.part] += rule.parameters
        elif not rule.per_layer:
            counts["final_norm"] += rule.parameters
        elif shape.layers - 1 in rule.layers:  # dense layers and layers with experts have the same norms
            counts["norms"] += rule.parameters
    return ParameterCount(**counts)


def count_layer(shape: ModelShape, layer: int = 0) -> int:
    """Parameters of one transformer layer."""
    c = count_by_part(shape)
    if layer not in shape.moe_layers or shape.experts is None:
        return c.attention + c.norms + c.mlp
    return c.attention + c.norms + c.router + c.shared_expert + shape.experts.count * c.expert


def count_parameters(shape: ModelShape) -> int:
    """All parameters, as ``transformers`` counts them."""
    c = count_by_part(shape)
    layers = sum(count_layer(shape, layer) for layer in range(shape.layers))
    return layers + c.embedding + c.output + c.final_norm + c.vision


def count_active(shape: ModelShape) -> int:
    """Parameters that take part for one token: all but the experts it does not visit."""
    if shape.experts is None:
        return count_parameters(shape)
    idle = (shape.experts.count - shape.experts.topk) * count_by_part(shape).expert
    return count_parameters(shape) - len(shape.moe_layers) * idle


def linears(shape: ModelShape) -> frozenset[str]:
    """Megatron's names of the layers with a weight matrix in attention, feed-forward layers and experts."""
    paths = [rule.megatron.split(".") for rule in weight_map(shape) if rule.per_layer and rule.part != "vision"]
    return frozenset(path[-2] for path in paths if path[-2].startswith("linear_"))


def require_linears(shape: ModelShape, wanted: Collection[str]) -> None:
    """Refuse adapters on layers that a model does not have.

    Raises:
        ConfigError: ``wanted`` names some.
    """
    if absent := sorted(set(wanted) - linears(shape)):
        raise ConfigError(
            f"tuner.target_modules: {shape.family} has no {', '.join(absent)}",
            f"It has {', '.join(sorted(linears(shape)))}; all-linear means all of them.",
        )
