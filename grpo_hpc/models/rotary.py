"""Rotary positions: frequencies from transformers' own functions, in Megatron's embedding.

Megatron-Core knows a plain base and the constants of Llama 3.1. Which scaling a model has, and what a model folder's
numbers mean for it, is transformers' to say: what it computes is taken as it is.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from grpo_hpc.models.shape import ModelShape, Rotary


def frequencies(rotary: Rotary, longest: int) -> Tensor:
    """Inverse frequencies [dim / 2] in float32, for sequences of up to ``longest`` tokens.

    Of a scaling with one set of frequencies for short sequences and another for long ones (LongRoPE, arXiv 2402.13753)
    vLLM takes that of the longest sequence for all, and so does this.
    """
    return _computed(rotary, longest)[0]


def rotary_options(shape: ModelShape, fused: bool) -> dict[str, Any]:
    """Options of Megatron's TransformerConfig.

    Fused kernels are for plain rotations: on packed rows they leave out a factor on cosine and sine, and pairs of
    neighbours; of latent attention Megatron fuses those with YaRN scaling only.
    """
    rotary = shape.rotary
    plain = not shape.mla and not rotary.interleaved and _factor(rotary) == 1.0
    options: dict[str, Any] = {"apply_rope_fusion": fused and plain}
    if not shape.mla:  # whose pairs are neighbours without being told
        options["rotary_interleaved"] = rotary.interleaved
    if rotary.skipped:
        options["no_rope_freq"] = [int(layer in rotary.skipped) for layer in range(shape.layers)]
    return options


def stretch_rotated(config: TransformerConfig, shape: ModelShape) -> None:
    """Let Megatron multiply rotated dimensions by the scaling's factor (YaRN, arXiv 2309.00071, eq. 25).

    It computes one from three fields that are no options, as ``(0.1 a ln(s) + 1) / (0.1 b ln(s) + 1)``: at s = e and
    b = 0 that is whatever is wanted.
    """
    factor = _factor(shape.rotary)
    if factor != 1.0:
        given = {"rotary_scaling_factor": math.e, "mscale": (factor - 1.0) / 0.1, "mscale_all_dim": 0.0}
        for name, value in given.items():
            setattr(config, f"yarn_{name}", value)


def _factor(rotary: Rotary) -> float:
    return _computed(rotary, 1)[1]


def _computed(rotary: Rotary, longest: int) -> tuple[Tensor, float]:
    """Frequencies, and the factor on cosines and sines."""
    if rotary.kind == "default":
        return 1.0 / rotary.theta ** (torch.arange(0, rotary.dim, 2, dtype=torch.float32) / rotary.dim), 1.0
    config = SimpleNamespace(
        rope_parameters={"rope_type": rotary.kind, "rope_theta": rotary.theta, **dict(rotary.settings)},
        head_dim=rotary.dim,
        hidden_size=rotary.dim,
        num_attention_heads=1,
        max_position_embeddings=rotary.positions,
        standardize_rope_params=lambda: None,
    )
    found, factor = ROPE_INIT_FUNCTIONS[rotary.kind](config, torch.device("cpu"), seq_len=longest)
    return found.float(), float(factor)
