"""What a family must say, and what most of them share: reading a Llama-like configuration and its table rows.

The functions return lists of rules; a family's weight map is their sum, with its own rows where it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.layouts import Copy, Fused, GateUp, Qkv, SplitColumns, SplitRows, Vocabulary
from grpo_hpc.models.shape import Experts, ModelShape, Rotary
from grpo_hpc.models.weight_map import Rule

Config = Mapping[str, Any]

HEAD = "lm_head.weight"
MG = "decoder.layers.{i}."

# Scalings of rotary frequencies, in transformers' words, and what each must be told.
_SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_NOT_SETTINGS = ("rope_theta", "rope_type", "type", "partial_rotary_factor", "mrope_section", "mrope_interleaved")


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


def unstated(config: Config, **meant: Any) -> tuple[tuple[str, Any], ...]:
    """Keys that a configuration leaves out, and vLLM takes otherwise than transformers does."""
    return tuple((key, value) for key, value in meant.items() if config.get(key) is None)


def read_decoder(config: Config, family: str, **own: Any) -> ModelShape:
    """The shape of a Llama-like decoder; ``own`` are fields in which the family differs."""
    require(config, hidden_act="silu", attention_bias=False, mlp_bias=False, use_sliding_window=False)
    heads = config["num_attention_heads"]
    head_dim = own.get("head_dim") or config.get("head_dim") or config["hidden_size"] // heads
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    fields: dict[str, Any] = {
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "ffn": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "tied": bool(config.get("tie_word_embeddings")),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "max_position": min(config["max_position_embeddings"], window or config["max_position_embeddings"]),
    }
    if "rotary" not in own:
        fields["rotary"] = rotary_of(config, head_dim)
    return ModelShape(family=family, **fields | own)


def rope_of(config: Config) -> dict[str, Any]:
    """Rotary settings from the present key (``rope_parameters``) or the older two, always with type and base."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def rotary_of(config: Config, head_dim: int, partial: float = 1.0, interleaved: bool = False) -> Rotary:
    """Rotary positions of a configuration. Multimodal ones (``mrope``) are plain on text.

    Args:
        partial: share of a head's dimensions that is rotated, where the configuration does not say it.
    """
    rope = rope_of(config)
    kind = {"mrope": "default", "su": "longrope"}.get(rope["rope_type"], rope["rope_type"])
    if kind not in _SCALINGS:
        raise CheckpointError(f"rotary scaling {kind!r} is not supported", f"Supported: {', '.join(_SCALINGS)}.")
    if "original_max_position_embeddings" in _SCALINGS[kind]:
        trained = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
        rope.setdefault("original_max_position_embeddings", trained)
    _ = [rope[key] for key in _SCALINGS[kind]]
    settings = {key: _fixed(value) for key, value in sorted(rope.items()) if key not in _NOT_SETTINGS}
    share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or partial
    dim = int(head_dim * share)
    if dim % 2 or not 0 < dim <= head_dim:
        raise CheckpointError(f"{dim} of {head_dim} dimensions of a head cannot be rotated in pairs")
    for key in ("short_factor", "long_factor") if kind == "longrope" else ():
        if len(rope[key]) != dim // 2:
            raise CheckpointError(f"{key} has {len(rope[key])} numbers for {dim} rotated dimensions, not {dim // 2}")
    plain = kind == "default"
    return Rotary(
        rope["rope_theta"],
        dim,
        interleaved,
        kind,
        () if plain else tuple(settings.items()),
        1 if plain else config["max_position_embeddings"],
    )


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


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
    for x, heads in (("q", shape.heads), ("k", shape.kv_heads)) if shape.qk_norm in ("head", "token") else ():
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


def shared_rules(shape: ModelShape, hf: str) -> list[Rule]:
    """The expert that every token visits, under ``hf``."""
    width, layers = experts_of(shape).shared_ffn, shape.moe_layers
    return gated_rules(shape.hidden, width, MG + "mlp.shared_experts.", hf, layers, "shared_expert") if width else []


def residual_norm_rules(shape: ModelShape, attention: str, mlp: str) -> list[Rule]:
    """The norms behind the two parts of a layer, by their whole Hugging Face names."""
    layout, layers = Copy((shape.hidden,)), all_layers(shape)
    places = (("self_attn_bda", attention), ("mlp_bda", mlp))
    return [Rule(f"{MG}{at}.norm.weight", (f"{name}.weight",), layout, "norm", layers=layers) for at, name in places]


def fused(rules: list[Rule], names: Mapping[str, str]) -> list[Rule]:
    """``rules``, of which those of several tensors are one tensor, under the name that ``names`` has for the first."""
    return [_fused(rule, names) for rule in rules]


def _fused(rule: Rule, names: Mapping[str, str]) -> Rule:
    first = next((name for name in names if name in rule.hf[0]), None)
    if first is None or len(rule.hf) == 1:
        return rule
    return replace(rule, hf=(rule.hf[0].replace(first, names[first]),), layout=Fused(rule.layout))


def sparse_layers(config: Config, dense: int) -> tuple[int, ...]:
    """Layers with experts, as ``mlp_layer_types`` says; without it all but the first ``dense``."""
    layers = config["num_hidden_layers"]
    kinds = config.get("mlp_layer_types") or ["dense"] * dense + ["sparse"] * (layers - dense)
    if len(kinds) != layers or set(kinds) - {"dense", "sparse"}:
        raise CheckpointError(f"mlp_layer_types must say dense or sparse for each of {layers} layers")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "sparse")


def choice_bias_rule(shape: ModelShape, name: str, kind: type[Copy] = Copy) -> Rule:
    """The bias that takes part in the choice of experts; float32, and not trained by gradients."""
    layout = kind((experts_of(shape).count,))
    return Rule(MG + "mlp.router.expert_bias", (name,), layout, "router", layers=shape.moe_layers, buffer=True)


def next_layers(shape: ModelShape) -> tuple[str, ...]:
    """Layers behind the last one, which predict further tokens (DeepSeek-V3, arXiv 2412.19437, section 2.2)."""
    return (f"model.layers.{shape.layers}.", *(f"model.layers.{shape.layers + n}." for n in range(1, 4)))


def experts_of(shape: ModelShape) -> Experts:
    if shape.experts is None:
        raise CheckpointError(f"{shape.family} without experts is not supported")
    return shape.experts


def moe_options(shape: ModelShape) -> dict[str, Any]:
    """Megatron's options for ``shape.experts``; how they are chosen is ours (:mod:`grpo_hpc.models.routing`)."""
    moe = experts_of(shape)
    uniform = shape.moe_layers == all_layers(shape)
    options: dict[str, Any] = {
        "num_moe_experts": moe.count,
        "moe_router_topk": moe.topk,
        "moe_ffn_hidden_size": moe.ffn,
        "moe_router_score_function": "sigmoid",  # with another it refuses a bias
        "moe_router_enable_expert_bias": moe.bias,
        "moe_router_bias_update_rate": 0.0,
        "moe_router_load_balancing_type": "none",
        "moe_layer_freq": 1 if uniform else [int(layer in shape.moe_layers) for layer in range(shape.layers)],
    }
    if moe.shared_ffn:
        options |= {
            "moe_shared_expert_intermediate_size": moe.shared_ffn,
            "moe_shared_expert_gate": moe.shared_gate,
        }
    return options
