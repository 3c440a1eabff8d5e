"""DeepSeek-V3: multi-head latent attention, dense first layers, many small experts beside a shared one."""

from __future__ import annotations

from typing import Any

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.family import (
    MG,
    Config,
    Family,
    all_layers,
    choice_bias_rule,
    embedding_rules,
    input_norm_rule,
    mlp_rules,
    moe_options,
    moe_rules,
    next_layers,
    read_decoder,
    require,
    rope_of,
    shared_rules,
    unstated,
)
from grpo_hpc.models.layouts import Copy, Layout, SplitColumns, SplitRows
from grpo_hpc.models.shape import Experts, Mla, ModelShape, Rotary, Yarn
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."
BIAS = "mlp.gate.e_score_correction_bias"


# what vLLM has other defaults for: no bias in the choice of experts, and scores by softmax
ROUTING = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}


def read(config: Config, family: str = "deepseek_v3") -> ModelShape:
    require(config, **ROUTING)
    return read_latent(
        config,
        family,
        balanced_experts(config),
        tuple(range(config["first_k_dense_replace"], config["num_hidden_layers"])),
        unstated=unstated(config, **ROUTING),
    )


def balanced_experts(config: Config) -> Experts:
    """Experts by sigmoid, of which a bias that balances them helps to choose."""
    return Experts(
        count=config["n_routed_experts"],
        topk=config["num_experts_per_tok"],
        ffn=config["moe_intermediate_size"],
        shared_ffn=config["moe_intermediate_size"] * config.get("n_shared_experts", 0),
        score="sigmoid",
        normalise=config.get("norm_topk_prob", True),
        scale=config["routed_scaling_factor"],
        groups=config.get("n_group", 1),
        topk_groups=config.get("topk_group", 1),
        bias=True,
    )


def read_latent(config: Config, family: str, experts: Experts, moe_layers: tuple[int, ...], **own: Any) -> ModelShape:
    """The shape of a decoder with latent attention.

    Its norms of compressed queries and keys have the model's epsilon, as in vLLM; in transformers they have 1e-6.
    """
    require(config, rope_interleave=True)
    rope = rope_of(config)
    mla = Mla(
        q_rank=config.get("q_lora_rank"),
        kv_rank=config["kv_lora_rank"],
        nope_dim=config["qk_nope_head_dim"],
        rope_dim=config["qk_rope_head_dim"],
        v_dim=config["v_head_dim"],
        yarn=_yarn(rope),
    )
    return read_decoder(
        config,
        family,
        kv_heads=config["num_attention_heads"],
        head_dim=mla.nope_dim + mla.rope_dim,
        rotary=Rotary(rope["rope_theta"], mla.rope_dim, interleaved=True),
        experts=experts,
        moe_layers=moe_layers,
        mla=mla,
        **own,
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
        choice_bias_rule(shape, HF + BIAS),
        *shared_rules(shape, HF + "mlp.shared_experts."),
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


def megatron(shape: ModelShape) -> dict[str, Any]:
    mla = mla_of(shape)
    options: dict[str, Any] = {
        "multi_latent_attention": True,
        "q_lora_rank": mla.q_rank,
        "kv_lora_rank": mla.kv_rank,
        "qk_head_dim": mla.nope_dim,
        "qk_pos_emb_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "rotary_base": shape.rotary.theta,
        "qk_layernorm": True,
        "rope_type": "rope",
        "rotary_scaling_factor": 1.0,
    }
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
    ignored=next_layers,
    float32=(BIAS,),
)
