"""Rows of vision towers: Megatron holds them as Hugging Face does, whole on every rank, under ``vision_model.``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.layouts import Copy
from grpo_hpc.models.shape import ModelShape, Vision
from grpo_hpc.models.weight_map import Rule

MEGATRON = "vision_model."


def tower(shape: ModelShape, root: str, rows: Callable[[Vision], tuple[list[Rule], list[Rule]]]) -> list[Rule]:
    """The map of a tower: ``rows`` gives the parameters of one block and those around the blocks, without ``root``."""
    if shape.vision is None:
        raise CheckpointError(f"{shape.family} without a vision tower is not supported")
    block, around = rows(shape.vision)
    layers = tuple(range(shape.vision.layers))
    named = [replace(rule, layers=layers) for rule in block] + around
    return [replace(rule, megatron=MEGATRON + rule.megatron, hf=(root + rule.hf[0],)) for rule in named]


def weight(name: str, *size: int) -> Rule:
    return Rule(f"{name}.weight", (f"{name}.weight",), Copy(size), "vision")


def biased(name: str, *size: int) -> list[Rule]:
    """A weight and its bias, as long as the weight is high."""
    return [weight(name, *size), Rule(f"{name}.bias", (f"{name}.bias",), Copy(size[:1]), "vision")]


def merged_width(vision: Vision) -> int:
    """Width of the patches that are joined to one token."""
    return vision.hidden * vision.merge**2
