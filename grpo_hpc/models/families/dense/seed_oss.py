"""Seed-OSS: Qwen2 with a head size of its own."""

from __future__ import annotations

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder, require
from grpo_hpc.models.shape import ModelShape


def read(config: Config) -> ModelShape:
    require(config, attention_out_bias=False)
    plain = {**config, "attention_bias": False}
    head_dim, bias = config.get("head_dim", 128), config.get("attention_bias", True)
    return read_decoder(plain, "seed_oss", qkv_bias=bias, head_dim=head_dim)


FAMILY = Family(read=read, rules=decoder_rules)
