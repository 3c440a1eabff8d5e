"""Phi-3 and Phi-4: Llama whose projections of one input are one tensor."""

from __future__ import annotations

from grpo_hpc.models.families.family import Config, Family, decoder_rules, fused, read_decoder
from grpo_hpc.models.shape import ModelShape


def read(config: Config) -> ModelShape:
    return read_decoder({"rms_norm_eps": 1e-5, **config}, "phi3")


FAMILY = Family(
    read=read, rules=lambda shape: fused(decoder_rules(shape), {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"})
)
