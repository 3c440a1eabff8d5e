"""Qwen3-MoE: Qwen3 with experts in some layers (all of them in the published models)."""

from __future__ import annotations

from typing import Any

from grpo_hpc.models.families.family import (
    Config,
    Family,
    attention_rules,
    embedding_rules,
    mlp_rules,
    moe_options,
    moe_rules,
    read_decoder,
)
from grpo_hpc.models.shape import Experts, ModelShape
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."


def read_sparse(config: Config, family: str, **own: Any) -> ModelShape:
    """The shape of a decoder with experts in the layers that ``decoder_sparse_step`` and ``mlp_only_layers`` say."""
    dense, step = set(config.get("mlp_only_layers") or ()), config.get("decoder_sparse_step", 1)
    layers = config["num_hidden_layers"]
    experts = Experts(
        count=config["num_experts"] if "num_experts" in config else config["num_local_experts"],
        topk=config.get("num_experts_per_tok", 8),
        ffn=config["moe_intermediate_size"],
        normalise=config.get("norm_topk_prob", False),
    )
    return read_decoder(
        config,
        family,
        experts=experts,
        moe_layers=tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0),
        **own,
    )


def rules(shape: ModelShape) -> list[Rule]:
    dense = mlp_rules(shape, HF) if shape.dense_layers else []
    return [*embedding_rules(shape), *attention_rules(shape, HF), *dense, *moe_rules(shape, HF)]


FAMILY = Family(read=lambda config: read_sparse(config, "qwen3_moe", qk_norm="head"), rules=rules, megatron=moe_options)
