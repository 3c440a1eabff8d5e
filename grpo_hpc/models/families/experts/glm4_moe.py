"""GLM-4.5 to 4.7: experts by sigmoid beside a shared one, and half of each head rotated."""

from __future__ import annotations

from grpo_hpc.models.families.experts.deepseek_v3 import BIAS, HF, balanced_experts
from grpo_hpc.models.families.family import (
    Config,
    Family,
    attention_rules,
    choice_bias_rule,
    embedding_rules,
    mlp_rules,
    moe_options,
    moe_rules,
    next_layers,
    read_decoder,
    rotary_of,
    shared_rules,
)
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule


def read(config: Config) -> ModelShape:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return read_decoder(
        {"rms_norm_eps": 1e-5, **config, "attention_bias": False},
        "glm4_moe",
        head_dim=head_dim,
        rotary=rotary_of(config, head_dim, partial=0.5),
        qkv_bias=config.get("attention_bias", False),
        qk_norm="head" if config.get("use_qk_norm") else None,
        experts=balanced_experts(config),
        moe_layers=tuple(range(config.get("first_k_dense_replace", 1), config["num_hidden_layers"])),
    )


def rules(shape: ModelShape) -> list[Rule]:
    return [
        *embedding_rules(shape),
        *attention_rules(shape, HF),
        *(mlp_rules(shape, HF) if shape.dense_layers else []),
        *moe_rules(shape, HF),
        choice_bias_rule(shape, HF + BIAS),
        *shared_rules(shape, HF + "mlp.shared_experts."),
    ]


FAMILY = Family(read=read, rules=rules, megatron=moe_options, ignored=next_layers, float32=(BIAS,))
