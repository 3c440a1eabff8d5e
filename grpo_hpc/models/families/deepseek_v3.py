"""DeepSeek-V3: multi-head latent attention, dense first layers, many small experts beside a shared one."""

from __future__ import annotations

from typing import Any

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.family import (
    MG,
    Config,
    Family,
    all_layers,
    embedding_rules,
    experts_of,
    gated_rules,
    input_norm_rule,
    mlp_rules,
    moe_options,
    moe_rules,
    read_decoder,
    require,
    rope_of,
)
from grpo_hpc.models.layouts import Copy, Layout, SplitColumns, SplitRows
from grpo_hpc.models.shape import Experts, Mla, ModelShape, Yarn
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."


# what vLLM has other defaults for: no bias in the choice of experts, and scores by softmax
ROUTING = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}


def read(config: Config) -> ModelShape:
    require(config, rope_interleave=True, rms_norm_eps=1e-6, **ROUTING)
    layers, rope = config["num_hidden_layers"], rope_of(config)
    mla = Mla(
        q_rank=config["q_lora_rank"],
        kv_rank=config["kv_lora_rank"],
        nope_dim=config["qk_nope_head_dim"],
        rope_dim=config["qk_rope_head_dim"],
        v_dim=config["v_head_dim"],
        yarn=_yarn(rope),
    )
    experts = Experts(
        count=config["n_routed_experts"],
        topk=config["num_experts_per_tok"],
        ffn=config["moe_intermediate_size"],
        shared_ffn=config["moe_intermediate_size"] * (config.get("n_shared_experts") or 0),
        score="sigmoid",
        normalise=config["norm_topk_prob"],
        scale=config["routed_scaling_factor"],
        groups=config["n_group"],
        topk_groups=config["topk_group"],
        bias=True,
    )
    if not experts.normalise:
        raise CheckpointError("norm_topk_prob: false is not supported with sigmoid scores")
    if experts.groups > 1 and experts.topk != 2 * experts.topk_groups:
        # the model ranks groups by their two best experts, Megatron by as many as the choice has per group
        raise CheckpointError(
            f"num_experts_per_tok {experts.topk} must be 2 * topk_group = {2 * experts.topk_groups} with expert groups"
        )
    plain = {**config, "rope_parameters": {"rope_theta": rope["rope_theta"]}, "rope_scaling": None}
    return read_decoder(
        plain,
        "deepseek_v3",
        kv_heads=config["num_attention_heads"],
        head_dim=mla.nope_dim + mla.rope_dim,
        experts=experts,
        moe_layers=tuple(range(config["first_k_dense_replace"], layers)),
        mla=mla,
        unstated=tuple((key, value) for key, value in ROUTING.items() if config.get(key) is None),
    )


def _yarn(rope: dict[str, Any]) -> Yarn | None:
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] != "yarn":
        raise CheckpointError(f"rotary scaling {rope} is not supported", "Supported: none or yarn.")
    return Yarn(
        factor=rope["factor"],
        original_max_position=rope["original_max_position_embeddings"],
        beta_fast=rope.get("beta_fast") or 32,
        beta_slow=rope.get("beta_slow") or 1,
        mscale=rope.get("mscale", 1.0),
        mscale_all_dim=rope.get("mscale_all_dim", 0.0),
    )


def rules(shape: ModelShape) -> list[Rule]:
    return [
        *embedding_rules(shape),
        *mla_rules(shape),
        *(mlp_rules(shape, HF) if shape.dense_layers else []),
        *moe_rules(shape, HF),
        *_router_and_shared(shape),
    ]


def mla_rules(shape: ModelShape) -> list[Rule]:
    """Compressed queries, keys and values: down, norm, up. The down projections are whole on every TE rank."""
    mla, at, hf = mla_of(shape), MG + "self_attention.", HF + "self_attn."

    def row(name: str, hf_name: str, layout: Layout, te: str | None = None) -> Rule:
        part: Any = "norm" if "layernorm" in name else "attention"
        return Rule(
            f"{at}{name}.weight",
            (f"{hf}{hf_name}.weight",),
            layout,
            part,
            te and at + te,
            all_layers(shape),
            te_whole=name.endswith("down_proj"),
        )

    queries, keys = shape.heads * shape.head_dim, shape.heads * (mla.nope_dim + mla.v_dim)
    rows = [
        input_norm_rule(shape, HF),
        row("linear_kv_down_proj", "kv_a_proj_with_mqa", SplitRows((mla.kv_rank + mla.rope_dim, shape.hidden))),
        row("kv_layernorm", "kv_a_layernorm", Copy((mla.kv_rank,)), "linear_kv_up_proj.layer_norm_weight"),
        row("linear_kv_up_proj", "kv_b_proj", SplitRows((keys, mla.kv_rank))),
        row("linear_proj", "o_proj", SplitColumns((shape.hidden, shape.heads * mla.v_dim))),
    ]
    if mla.q_rank is None:
        return [*rows, row("linear_q_proj", "q_proj", SplitRows((queries, shape.hidden)))]
    return [
        *rows,
        row("linear_q_down_proj", "q_a_proj", SplitRows((mla.q_rank, shape.hidden))),
        row("q_layernorm", "q_a_layernorm", Copy((mla.q_rank,)), "linear_q_up_proj.layer_norm_weight"),
        row("linear_q_up_proj", "q_b_proj", SplitRows((queries, mla.q_rank))),
    ]


def mla_of(shape: ModelShape) -> Mla:
    if shape.mla is None:
        raise CheckpointError(f"{shape.family} without multi-head latent attention is not supported")
    return shape.mla


def _router_and_shared(shape: ModelShape) -> list[Rule]:
    moe, layers = experts_of(shape), shape.moe_layers
    name, layout = HF + "mlp.gate.e_score_correction_bias", Copy((moe.count,))
    bias = Rule(MG + "mlp.router.expert_bias", (name,), layout, "router", layers=layers, buffer=True)
    if not moe.shared_ffn:
        return [bias]
    mg, hf = MG + "mlp.shared_experts.", HF + "mlp.shared_experts."
    return [bias, *gated_rules(shape.hidden, moe.shared_ffn, mg, hf, layers, "shared_expert")]


def megatron(shape: ModelShape) -> dict[str, Any]:
    mla, moe = mla_of(shape), experts_of(shape)
    options: dict[str, Any] = {
        "multi_latent_attention": True,
        "q_lora_rank": mla.q_rank,
        "kv_lora_rank": mla.kv_rank,
        "qk_head_dim": mla.nope_dim,
        "qk_pos_emb_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "rotary_base": shape.rope_theta,
        "qk_layernorm": True,
        "moe_router_enable_expert_bias": moe.bias,
        "moe_router_bias_update_rate": 0.0,
        "moe_router_topk_scaling_factor": moe.scale,
        "rope_type": "rope",
        "rotary_scaling_factor": 1.0,
    }
    if moe.groups > 1:
        options |= {"moe_router_num_groups": moe.groups, "moe_router_group_topk": moe.topk_groups}
    if mla.yarn is not None:
        options |= {
            "rope_type": "yarn",
            "rotary_scaling_factor": mla.yarn.factor,
            "original_max_position_embeddings": mla.yarn.original_max_position,
            "beta_fast": mla.yarn.beta_fast,
            "beta_slow": mla.yarn.beta_slow,
            "mscale": mla.yarn.mscale,
            "mscale_all_dim": mla.yarn.mscale_all_dim,
        }
    return moe_options(shape) | options


FAMILY = Family(
    read=read,
    rules=rules,
    megatron=megatron,
    ignored=lambda shape: (f"model.layers.{shape.layers}.",),  # the multi-token prediction layer
    float32=("mlp.gate.e_score_correction_bias",),
)
