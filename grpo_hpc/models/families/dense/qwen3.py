"""Qwen3 (dense): Llama with a norm on every query and key head, whose size is not hidden / heads."""

from __future__ import annotations

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder
from grpo_hpc.models.shape import ModelShape


def read(config: Config) -> ModelShape:
    return read_decoder(config, "qwen3", qk_norm="head", head_dim=config.get("head_dim") or 128)


FAMILY = Family(read=read, rules=decoder_rules)
