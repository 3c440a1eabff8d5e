"""DeepSeek-V2: DeepSeek-V3's attention, and experts by softmax within groups, without a bias."""

from __future__ import annotations

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.experts.deepseek_v3 import HF, megatron, mla_rules, read_latent
from grpo_hpc.models.families.family import (
    Config,
    Family,
    embedding_rules,
    mlp_rules,
    moe_rules,
    require,
    shared_rules,
)
from grpo_hpc.models.shape import Experts, ModelShape
from grpo_hpc.models.weight_map import Rule


def read(config: Config) -> ModelShape:
    require(config, scoring_func="softmax", norm_topk_prob=False)
    method = config.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise CheckpointError(f"topk_method: {method!r} is not supported (only 'greedy' and 'group_limited_greedy')")
    grouped = method == "group_limited_greedy"
    if not grouped and config.get("n_group", 1) > 1:
        raise CheckpointError(f"n_group: {config['n_group']} groups have no meaning with topk_method 'greedy'")
    experts = Experts(
        count=config["n_routed_experts"],
        topk=config["num_experts_per_tok"],
        ffn=config["moe_intermediate_size"],
        shared_ffn=config["moe_intermediate_size"] * config.get("n_shared_experts", 2),
        normalise=False,
        scale=config.get("routed_scaling_factor", 1.0),
        groups=config["n_group"] if grouped else 1,
        topk_groups=config["topk_group"] if grouped else 1,
        group_best=1,
    )
    layers = tuple(range(config.get("first_k_dense_replace", 0), config["num_hidden_layers"]))
    return read_latent(config, "deepseek_v2", experts, layers)


def rules(shape: ModelShape) -> list[Rule]:
    return [
        *embedding_rules(shape),
        *mla_rules(shape),
        *(mlp_rules(shape, HF) if shape.dense_layers else []),
        *moe_rules(shape, HF),
        *shared_rules(shape, HF + "mlp.shared_experts."),
    ]


FAMILY = Family(read=read, rules=rules, megatron=megatron)
