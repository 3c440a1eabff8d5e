"""What a family must say, and what most of them share: reading a Llama-like configuration and its table rows.

The functions return lists of rules; a family's weight map is their sum, with its own rows where it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.layouts import Copy, GateUp, Qkv, SplitColumns, SplitRows, Vocabulary
from grpo_hpc.models.shape import Experts, ModelShape
from grpo_hpc.models.weight_map import Rule

Config = Mapping[str, Any]

HEAD = "lm_head.weight"
MG = "decoder.layers.{i}."

# Llama 3.1's frequency scaling; Megatron-Core has exactly these constants built in (arXiv 2407.21783, section 3.4).
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        read: the shape that a ``config.json`` describes; raises KeyError for a missing key, CheckpointError for an
            option that is not supported.
        rules: the weight map.
        megatron: options of Megatron's TransformerConfig beyond those that follow from the shape in every family.
        ignored: beginnings of Hugging Face names that are left out, as ``transformers`` leaves them out.
        float32: Hugging Face names (without layer numbers) that are float32 whatever the model's dtype is.
    """

    read: Callable[[Config], ModelShape]
    rules: Callable[[ModelShape], list[Rule]]
    megatron: Callable[[ModelShape], dict[str, Any]] = lambda shape: {}
    ignored: Callable[[ModelShape], tuple[str, ...]] = lambda shape: ()
    float32: tuple[str, ...] = ()


def require(config: Config, **supported: Any) -> None:
    """Refuse options that have another value than the supported one; an absent option has it."""
    for key, wanted in supported.items():
        if config.get(key, wanted) not in (wanted, None):
            raise CheckpointError(f"{key}: {config[key]!r} is not supported (only {wanted!r})")


def read_decoder(config: Config, family: str, **own: Any) -> ModelShape:
    """The shape of a Llama-like decoder; ``own`` are fields in which the family differs."""
    require(config, hidden_act="silu", attention_bias=False, mlp_bias=False, use_sliding_window=False)
    theta, factor = _rope(config)
    heads = config["num_attention_heads"]
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    fields: dict[str, Any] = {
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "ffn": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "tied": bool(config.get("tie_word_embeddings")),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling_factor": factor,
        "max_position": min(config["max_position_embeddings"], window or config["max_position_embeddings"]),
    }
    return ModelShape(family=family, **fields | own)


def rope_of(config: Config) -> dict[str, Any]:
    """Rotary settings from the present key (``rope_parameters``) or the older two, always with type and base."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def _rope(config: Config) -> tuple[float, float | None]:
    """Base and Llama-3 scaling factor. Multimodal rotary positions (``mrope``) are plain ones on text."""
    rope = rope_of(config)
    if rope["rope_type"] in ("default", "mrope"):
        return rope["rope_theta"], None
    if rope["rope_type"] == "llama3" and all(rope.get(key) == value for key, value in _LLAMA3_ROPE.items()):
        return rope["rope_theta"], float(rope["factor"])
    raise CheckpointError(f"rotary scaling {rope} is not supported", f"Supported: none, or llama3 with {_LLAMA3_ROPE}.")


def all_layers(shape: ModelShape) -> tuple[int, ...]:
    return tuple(range(shape.layers))


def decoder_rules(shape: ModelShape, root: str = "model.") -> list[Rule]:
    """The whole map of a dense Llama-like decoder under ``root``."""
    hf = root + "layers.{i}."
    return [*embedding_rules(shape, root), *attention_rules(shape, hf), *mlp_rules(shape, hf)]


def embedding_rules(shape: ModelShape, root: str = "model.") -> list[Rule]:
    """Embedding, final norm, output matrix."""
    embedding, matrix = root + "embed_tokens.weight", Vocabulary((shape.vocab, shape.hidden))
    output = embedding if shape.tied else HEAD
    return [
        Rule("embedding.word_embeddings.weight", (embedding,), matrix, "embedding"),
        Rule("decoder.final_layernorm.weight", (root + "norm.weight",), Copy((shape.hidden,)), "norm"),
        Rule("output_layer.weight", (output,), matrix, "output", repeats=shape.tied),
    ]


def attention_rules(shape: ModelShape, hf: str) -> list[Rule]:
    """Norm before attention, query/key/value, norms of queries and keys, output projection."""
    layers, at, names = all_layers(shape), MG + "self_attention.", [f"{hf}self_attn.{x}_proj" for x in "qkv"]

    def qkv(*trailing: int) -> Qkv:
        return Qkv(shape.heads, shape.kv_heads, shape.head_dim, trailing)

    rules = [
        input_norm_rule(shape, hf),
        Rule(at + "linear_qkv.weight", tuple(f"{n}.weight" for n in names), qkv(shape.hidden), "attention"),
        Rule(
            at + "linear_proj.weight",
            (hf + "self_attn.o_proj.weight",),
            SplitColumns((shape.hidden, shape.heads * shape.head_dim)),
            "attention",
        ),
    ]
    if shape.qkv_bias:
        rules.append(Rule(at + "linear_qkv.bias", tuple(f"{n}.bias" for n in names), qkv(), "attention"))
    for x, heads in (("q", shape.heads), ("k", shape.kv_heads)) if shape.qk_norm else ():
        layout = Copy((shape.head_dim,)) if shape.qk_norm == "head" else SplitRows((heads * shape.head_dim,))
        rules.append(Rule(f"{at}{x}_layernorm.weight", (f"{hf}self_attn.{x}_norm.weight",), layout, "norm"))
    return [replace(rule, layers=layers) for rule in rules]


def input_norm_rule(shape: ModelShape, hf: str) -> Rule:
    """The norm before attention; TransformerEngine fuses it into the projection behind it, but not with MLA."""
    te = None if shape.mla else MG + "self_attention.linear_qkv.layer_norm_weight"
    name, layout = hf + "input_layernorm.weight", Copy((shape.hidden,))
    return Rule(MG + "input_layernorm.weight", (name,), layout, "norm", te, layers=all_layers(shape))


def mlp_rules(shape: ModelShape, hf: str) -> list[Rule]:
    """The feed-forward network of the dense layers, and the norm before it."""
    layers, norm = shape.dense_layers, Copy((shape.hidden,))
    fused = MG + "mlp.linear_fc1.layer_norm_weight"
    return [
        Rule(
            MG + "pre_mlp_layernorm.weight",
            (hf + "post_attention_layernorm.weight",),
            norm,
            "norm",
            fused,
            layers,
        ),
        *gated_rules(shape.hidden, shape.ffn, MG + "mlp.", hf + "mlp.", layers),
    ]


def gated_rules(hidden: int, ffn: int, mg: str, hf: str, layers: tuple[int, ...], part: Any = "mlp") -> list[Rule]:
    """A gated feed-forward network: two projections up, one down."""
    up = (f"{hf}gate_proj.weight", f"{hf}up_proj.weight")
    return [
        Rule(mg + "linear_fc1.weight", up, GateUp(ffn, hidden), part, layers=layers),
        Rule(mg + "linear_fc2.weight", (f"{hf}down_proj.weight",), SplitColumns((hidden, ffn)), part, layers=layers),
    ]


def moe_rules(
    shape: ModelShape,
    hf: str,
    router: str = "mlp.gate.weight",
    expert: str = "mlp.experts.{e}.",
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> list[Rule]:
    """Norm, router and routed experts of the layers that have experts."""
    moe, layers = experts_of(shape), shape.moe_layers
    gate, up, down = (f"{hf}{expert}{name}.weight" for name in projections)
    local = MG + "mlp.experts.local_experts.{e}."
    norm = (hf + "post_attention_layernorm.weight",)
    return [
        Rule(MG + "pre_mlp_layernorm.weight", norm, Copy((shape.hidden,)), "norm", layers=layers),
        Rule(MG + "mlp.router.weight", (hf + router,), Copy((moe.count, shape.hidden)), "router", layers=layers),
        Rule(
            local + "linear_fc1.weight",
            (gate, up),
            GateUp(moe.ffn, shape.hidden),
            "expert",
            layers=layers,
            experts=moe.count,
        ),
        Rule(
            local + "linear_fc2.weight",
            (down,),
            SplitColumns((shape.hidden, moe.ffn)),
            "expert",
            layers=layers,
            experts=moe.count,
        ),
    ]


def experts_of(shape: ModelShape) -> Experts:
    if shape.experts is None:
        raise CheckpointError(f"{shape.family} without experts is not supported")
    return shape.experts


def moe_options(shape: ModelShape) -> dict[str, Any]:
    """Megatron's options for ``shape.experts``.

    Softmax over all experts, choose, normalise is the same as choose, softmax over the chosen: so Megatron's two
    orders (``moe_router_pre_softmax``) are what ``normalise`` chooses between.
    """
    moe = experts_of(shape)
    uniform = shape.moe_layers == all_layers(shape)
    options: dict[str, Any] = {
        "num_moe_experts": moe.count,
        "moe_router_topk": moe.topk,
        "moe_ffn_hidden_size": moe.ffn,
        "moe_router_score_function": moe.score,
        "moe_router_pre_softmax": moe.score == "softmax" and not moe.normalise,
        "moe_router_load_balancing_type": "none",
        "moe_layer_freq": 1 if uniform else [int(layer in shape.moe_layers) for layer in range(shape.layers)],
    }
    if moe.shared_ffn:
        options["moe_shared_expert_intermediate_size"] = moe.shared_ffn
    return options
