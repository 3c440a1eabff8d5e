"""Hunyuan 1 (dense): Llama with norms of queries and keys after they are rotated, and a rotary base that is raised."""

from __future__ import annotations

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.family import (
    MG,
    Config,
    Family,
    all_layers,
    decoder_rules,
    read_decoder,
    require,
    rope_of,
)
from grpo_hpc.models.layouts import Copy
from grpo_hpc.models.shape import ModelShape, Rotary
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}.self_attn."


def read(config: Config) -> ModelShape:
    require(config, use_qk_norm=True)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotary = _raised(rope_of(config), head_dim)
    own = {"head_dim": head_dim, "qk_norm": "rotated"} | ({} if rotary is None else {"rotary": rotary})
    return read_decoder({"rms_norm_eps": 1e-5, **config}, "hunyuan_v1_dense", **own)


def _raised(rope: Config, dim: int) -> Rotary | None:
    """The base times ``alpha ** (dim / (dim - 2))``; None where the configuration has no alpha."""
    alpha = rope.get("alpha")
    if not alpha or rope["rope_type"] != "dynamic":
        return None
    if type(alpha) not in (int, float) or not 0 < alpha < 1e9 or dim <= 2:
        raise CheckpointError(f"alpha is {alpha!r} with {dim} dimensions of a head, not a positive number")
    return Rotary(rope["rope_theta"] * alpha ** (dim / (dim - 2)), dim)


def rules(shape: ModelShape) -> list[Rule]:
    at, layout, layers = MG + "self_attention.core_attention.", Copy((shape.head_dim,)), all_layers(shape)
    names = {"q": "query", "k": "key"}
    norms = [
        Rule(f"{at}{x}_layernorm.weight", (f"{HF}{name}_layernorm.weight",), layout, "norm", layers=layers)
        for x, name in names.items()
    ]
    return [*decoder_rules(shape), *norms]


FAMILY = Family(read=read, rules=rules)
