"""Granite 3 (dense): Llama with factors on embeddings, residuals, attention and logits."""

from __future__ import annotations

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder
from grpo_hpc.models.shape import ModelShape


def read(config: Config) -> ModelShape:
    return read_decoder(
        config,
        "granite",
        embedding_scale=float(config.get("embedding_multiplier", 1.0)),
        residual_scale=float(config.get("residual_multiplier", 1.0)),
        softmax_scale=float(config.get("attention_multiplier", 1.0)),
        logit_divisor=float(config.get("logits_scaling", 1.0)),
    )


FAMILY = Family(read=read, rules=decoder_rules)
