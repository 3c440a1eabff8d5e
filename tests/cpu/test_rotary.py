"""Frequencies of rotary positions are those that transformers' model of the configuration computes with."""

from __future__ import annotations

import pytest
import torch
from tiny import OWN, tiny_model

from grpo_hpc.models.families.read_shape import shape_of
from grpo_hpc.models.rotary import frequencies, rotary_options

SCALED = [
    name for name, own in OWN.items() if {"rope_scaling", "rope_parameters"} & own.keys() and "deepseek" not in name
]


def angles(model, tokens):
    """Cosines [tokens, dim] of the rotation at each position, factor included."""
    positions = torch.arange(tokens)[None]
    return model.model.rotary_emb(torch.zeros(1, tokens, 8), positions)[0][0]


@pytest.mark.parametrize("tokens", [100, 400])
@pytest.mark.parametrize("name", SCALED)
def test_angles_are_those_of_transformers(name, tokens):
    """Of LongRoPE, short frequencies for engines up to 128 tokens and long ones beyond."""
    model = tiny_model(name, False, 1, 0)
    rotary = shape_of(model.config.to_dict()).rotary
    theirs = angles(model, tokens)
    ours = torch.outer(torch.arange(tokens).float(), frequencies(rotary, tokens)).cos()
    factor = theirs[0, 0]  # at position 0 every cosine is 1
    torch.testing.assert_close(factor * ours, theirs[:, : rotary.dim // 2], atol=1e-5, rtol=1e-5)
    stretched = bool(abs(factor - 1) > 1e-6)
    assert rotary_options(shape_of(model.config.to_dict()), fused=True)["apply_rope_fusion"] is not stretched


def test_scalings_of_all_kinds_are_compared():
    kinds = {shape_of(tiny_model(name, False, 1, 0).config.to_dict()).rotary.kind for name in SCALED}
    assert {"llama3", "longrope", "dynamic", "yarn"} <= kinds
