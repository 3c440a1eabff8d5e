"""Qwen2-MoE: Qwen2 with experts, and a shared expert behind a gate of its own."""

from __future__ import annotations

from dataclasses import replace

from grpo_hpc.models.families.experts.qwen3_moe import read_sparse
from grpo_hpc.models.families.experts.qwen3_moe import rules as sparse_rules
from grpo_hpc.models.families.family import MG, Config, Family, experts_of, moe_options, require, shared_rules
from grpo_hpc.models.layouts import Copy
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}.mlp."


def read(config: Config) -> ModelShape:
    require(config, qkv_bias=True)
    shape = read_sparse(config, "qwen2_moe", qkv_bias=True)
    shared = config["shared_expert_intermediate_size"]
    return replace(shape, experts=replace(experts_of(shape), shared_ffn=shared, shared_gate=True))


def rules(shape: ModelShape) -> list[Rule]:
    name, layout = HF + "shared_expert_gate.weight", Copy((1, shape.hidden))
    gate = Rule(MG + "mlp.shared_experts.gate_weight", (name,), layout, "shared_expert", layers=shape.moe_layers)
    return [*sparse_rules(shape), *shared_rules(shape, HF + "shared_expert."), gate]


FAMILY = Family(read=read, rules=rules, megatron=moe_options)
