"""OLMoE: experts in every layer, and norms over all query (and all key) heads of a token together."""

from __future__ import annotations

from grpo_hpc.models.families.family import (
    Config,
    Family,
    attention_rules,
    embedding_rules,
    moe_options,
    moe_rules,
    read_decoder,
    require,
)
from grpo_hpc.models.shape import Experts, ModelShape
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."


def read(config: Config) -> ModelShape:
    require(config, clip_qkv=None)
    experts = Experts(
        count=config["num_experts"],
        topk=config["num_experts_per_tok"],
        ffn=config["intermediate_size"],
        normalise=config.get("norm_topk_prob", False),
    )
    layers = tuple(range(config["num_hidden_layers"]))
    return read_decoder(config, "olmoe", qk_norm="token", experts=experts, moe_layers=layers)


def rules(shape: ModelShape) -> list[Rule]:
    return [*embedding_rules(shape), *attention_rules(shape, HF), *moe_rules(shape, HF)]


FAMILY = Family(read=read, rules=rules, megatron=moe_options)
