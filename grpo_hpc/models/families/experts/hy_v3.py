"""Hunyuan 3: experts by sigmoid beside a shared one, behind Qwen3's attention."""

from __future__ import annotations

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
    require,
    shared_rules,
    sparse_layers,
    unstated,
)
from grpo_hpc.models.shape import Experts, ModelShape
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."
BIAS = "mlp.expert_bias"


def read(config: Config) -> ModelShape:
    require(config, qk_norm=True, moe_router_use_sigmoid=True, moe_router_enable_expert_bias=True, route_norm=True)
    width = config.get("moe_intermediate_size") or config["expert_hidden_dim"]
    require(config, expert_hidden_dim=width)
    experts = Experts(
        count=config["num_experts"],
        topk=config["num_experts_per_tok"],
        ffn=width,
        shared_ffn=width * config.get("num_shared_experts", 1),
        score="sigmoid",
        scale=config["router_scaling_factor"],
        bias=True,
    )
    defaults = {"rms_norm_eps": 1e-5, "rope_theta": 11_158_840.0, "head_dim": 128}
    layers = sparse_layers(config, dense=config.get("first_k_dense_replace", 1))
    return read_decoder(
        {**defaults, **config},
        "hy_v3",
        qk_norm="head",
        experts=experts,
        moe_layers=layers,
        unstated=unstated(
            config,
            qk_norm=True,
            route_norm=True,
            expert_hidden_dim=width,
            first_k_dense_replace=config["num_hidden_layers"] - len(layers),
        ),
    )


def rules(shape: ModelShape) -> list[Rule]:
    return [
        *embedding_rules(shape),
        *attention_rules(shape, HF),
        *(mlp_rules(shape, HF) if shape.dense_layers else []),
        *moe_rules(shape, HF, router="mlp.router.gate.weight"),
        choice_bias_rule(shape, HF + BIAS),
        *shared_rules(shape, HF + "mlp.shared_mlp."),
    ]


FAMILY = Family(read=read, rules=rules, megatron=moe_options, ignored=next_layers, float32=(BIAS,))
