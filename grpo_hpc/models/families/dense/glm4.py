"""GLM-4-0414: norms around both parts of a layer, and neighbours in half of each head rotated."""

from __future__ import annotations

from grpo_hpc.models.families.family import (
    Config,
    Family,
    decoder_rules,
    fused,
    read_decoder,
    residual_norm_rules,
    rotary_of,
)
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."


def read(config: Config) -> ModelShape:
    head_dim = config.get("head_dim", 128)
    return read_decoder(
        {"rms_norm_eps": 1.5625e-7, **config, "attention_bias": False},
        "glm4",
        head_dim=head_dim,
        rotary=rotary_of(config, head_dim, partial=0.5, interleaved=True),
        qkv_bias=config.get("attention_bias", True),
        norms="around",
    )


def rules(shape: ModelShape) -> list[Rule]:
    behind = residual_norm_rules(shape, HF + "post_self_attn_layernorm", HF + "post_mlp_layernorm")
    return [*fused(decoder_rules(shape), {"gate_proj": "gate_up_proj"}), *behind]


FAMILY = Family(read=read, rules=rules)
