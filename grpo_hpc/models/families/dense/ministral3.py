"""Ministral 3: Mistral with YaRN, whose queries grow beyond the length that it was first trained at."""

from __future__ import annotations

from dataclasses import replace

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder, rope_of
from grpo_hpc.models.shape import ModelShape


def read(config: Config) -> ModelShape:
    """Up to that length the factor ``1 + beta * log(1 + floor(position / length))`` is 1; no run goes beyond it."""
    shape, rope = read_decoder({"rms_norm_eps": 1e-5, **config}, "ministral3"), rope_of(config)
    if not rope.get("llama_4_scaling_beta"):
        return shape
    return replace(shape, max_position=min(shape.max_position, rope["original_max_position_embeddings"]))


FAMILY = Family(read=read, rules=decoder_rules)
