"""MiniMax-M2: experts by sigmoid in every layer, norms over all heads of a token, half of each head rotated."""

from __future__ import annotations

from grpo_hpc.models.families.experts.mixtral import rules as mixtral_rules
from grpo_hpc.models.families.family import (
    Config,
    Family,
    choice_bias_rule,
    moe_options,
    next_layers,
    read_decoder,
    require,
    rotary_of,
    unstated,
)
from grpo_hpc.models.shape import Experts, ModelShape
from grpo_hpc.models.weight_map import Rule

BIAS = "block_sparse_moe.e_score_correction_bias"


def read(config: Config) -> ModelShape:
    require(config, scoring_func="sigmoid", use_routing_bias=True, use_qk_norm=True, qk_norm_type="per_layer")
    experts = Experts(
        count=config["num_local_experts"],
        topk=config["num_experts_per_tok"],
        ffn=config["intermediate_size"],
        shared_ffn=config.get("shared_intermediate_size", 0),
        score="sigmoid",
        bias=True,
    )
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return read_decoder(
        config,
        "minimax_m2",
        head_dim=head_dim,
        rotary=rotary_of(config, head_dim, partial=config.get("rotary_dim", head_dim) / head_dim),
        qk_norm="token",
        experts=experts,
        unstated=unstated(config, scoring_func="sigmoid", use_routing_bias=True),
        moe_layers=tuple(range(config["num_hidden_layers"])),
    )


def rules(shape: ModelShape) -> list[Rule]:
    return [*mixtral_rules(shape), choice_bias_rule(shape, "model.layers.{i}." + BIAS)]


FAMILY = Family(read=read, rules=rules, megatron=moe_options, ignored=next_layers, float32=(BIAS,))
