"""ERNIE 4.5 with experts: by softmax, and a bias that balances them helps to choose."""

from __future__ import annotations

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.family import (
    Config,
    Family,
    attention_rules,
    choice_bias_rule,
    embedding_rules,
    mlp_rules,
    moe_options,
    moe_rules,
    read_decoder,
    require,
    rotary_of,
    shared_rules,
)
from grpo_hpc.models.layouts import Row
from grpo_hpc.models.shape import Experts, ModelShape
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."
BIAS = "mlp.moe_statics.e_score_correction_bias"


def read(config: Config) -> ModelShape:
    require(config, use_bias=False, moe_use_aux_free=True, moe_gate="topk", moe_gate_act="softmax")
    known = {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, **config}
    experts = Experts(
        count=config.get("moe_num_experts", 64),
        topk=config.get("moe_k", 6),
        ffn=config["moe_intermediate_size"],
        shared_ffn=config["moe_intermediate_size"] * config.get("moe_num_shared_experts", 2),
        bias=True,
    )
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return read_decoder(
        known,
        "ernie4_5_moe",
        head_dim=head_dim,
        rotary=rotary_of(known, head_dim, interleaved=True),
        experts=experts,
        moe_layers=_with_experts(config),
    )


def _with_experts(config: Config) -> tuple[int, ...]:
    layers, last = config["num_hidden_layers"], config.get("moe_layer_end_index", -1)
    if type(last) is not int or last < -1:
        raise CheckpointError(f"moe_layer_end_index is {last!r}, not the number of a layer, or -1 for the last")
    first, every = config.get("moe_layer_start_index", 1), config.get("moe_layer_interval", 1)
    behind = layers if last == -1 else min(last + 1, layers)
    return tuple(layer for layer in range(first, behind) if (layer + 1) % every == 0)


def rules(shape: ModelShape) -> list[Rule]:
    return [
        *embedding_rules(shape),
        *attention_rules(shape, HF),
        *(mlp_rules(shape, HF) if shape.dense_layers else []),
        *moe_rules(shape, HF),
        choice_bias_rule(shape, HF + BIAS, Row),
        *shared_rules(shape, HF + "mlp.shared_experts."),
    ]


FAMILY = Family(
    read=read,
    rules=rules,
    megatron=moe_options,
    ignored=lambda shape: ("model.mtp_",),
    float32=("mlp.gate.weight", BIAS),
)
