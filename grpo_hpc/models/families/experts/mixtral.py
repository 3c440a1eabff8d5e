"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from grpo_hpc.models.families.family import (
    Config,
    Family,
    attention_rules,
    embedding_rules,
    moe_options,
    moe_rules,
    read_decoder,
)
from grpo_hpc.models.shape import Experts, ModelShape
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."


def read(config: Config) -> ModelShape:
    experts = Experts(
        count=config["num_local_experts"], topk=config["num_experts_per_tok"], ffn=config["intermediate_size"]
    )
    layers = tuple(range(config["num_hidden_layers"]))
    return read_decoder(config, "mixtral", experts=experts, moe_layers=layers)


def rules(shape: ModelShape) -> list[Rule]:
    router, expert = "block_sparse_moe.gate.weight", "block_sparse_moe.experts.{e}."
    experts = moe_rules(shape, HF, router, expert, ("w1", "w3", "w2"))
    return [*embedding_rules(shape), *attention_rules(shape, HF), *experts]


FAMILY = Family(read=read, rules=rules, megatron=moe_options)
