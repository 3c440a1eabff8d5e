"""What the values of a ``config.json`` may be. They are checked before a family computes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from grpo_hpc.errors import CheckpointError

# Whole numbers, and the largest that each may be: more than any published model has.
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "depth", "first_k_dense_replace", "decoder_sparse_step"), 1024),
    **dict.fromkeys(("no_rope_layer_interval",), 1024),
    **dict.fromkeys(("hidden_size", "out_hidden_size", "q_lora_rank", "kv_lora_rank"), 2**18),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "expert_hidden_dim"), 2**20),
    "shared_expert_intermediate_size": 2**20,
    "shared_intermediate_size": 2**20,
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "rotary_dim"), 2**14),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 2**14),
    **dict.fromkeys(("vocab_size", "num_position_embeddings"), 2**24),
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings", "sliding_window"), 10**8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), 2**13),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 2**13),
    **dict.fromkeys(("moe_num_experts", "moe_k", "moe_num_shared_experts"), 2**13),
    **dict.fromkeys(("moe_layer_start_index", "moe_layer_interval"), 1024),
    **dict.fromkeys(("patch_size", "spatial_patch_size", "temporal_patch_size", "spatial_merge_size"), 1024),
    **dict.fromkeys(("in_channels", "in_chans"), 1024),
}
_MAY_BE_ZERO = {
    *("first_k_dense_replace", "n_shared_experts", "num_shared_experts", "shared_intermediate_size"),
    *("moe_num_shared_experts", "moe_layer_start_index"),
    *("mscale", "mscale_all_dim", "llama_4_scaling_beta", "sliding_window"),
}
_NUMBERS = (
    *("rope_theta", "rms_norm_eps", "routed_scaling_factor", "router_scaling_factor"),
    *("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
    *("attention_factor", "partial_rotary_factor", "llama_4_scaling_beta"),
)
_LARGEST = 1e15
_SWITCHES = (
    *("tie_word_embeddings", "norm_topk_prob", "attention_bias", "mlp_bias", "use_sliding_window", "rope_interleave"),
    *("use_qk_norm", "attention_out_bias", "use_bias", "qkv_bias", "truncate"),
    *("moe_use_aux_free", "use_routing_bias", "moe_router_use_sigmoid", "moe_router_enable_expert_bias", "qk_norm"),
)
_LISTS = ("mlp_only_layers", "deepstack_visual_indexes", "no_rope_layers")
_FACTORS = ("short_factor", "long_factor")
_PARTS = ("text_config", "vision_config", "rope_parameters", "rope_scaling")
_OPTIONAL = "q_lora_rank"  # null says that there is none; of other keys it says what an absent one says


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without its nulls, when every value that a family reads is of its kind and within its bounds.

    Raises:
        CheckpointError: names the key, what it is and what it may be.
    """
    found = {key: value for key, value in config.items() if value is not None or key == _OPTIONAL}
    for key, value in found.items():
        if value is not None and (kind := _KINDS.get(key)) is not None and (wanted := kind(key, value)):
            raise CheckpointError(f"{key} is {_shown(value)}, not {wanted}")
    return {key: checked(value) if key in _PARTS else value for key, value in found.items()}


def _size(key: str, value: Any) -> str:
    least = 0 if key in _MAY_BE_ZERO else 1
    fits = type(value) is int and least <= value <= _SIZES[key]
    return "" if fits else f"a whole number from {least} to {_SIZES[key]}"


def _number(key: str, value: Any) -> str:
    fits = type(value) in (int, float) and (value >= 0 if key in _MAY_BE_ZERO else value > 0) and value <= _LARGEST
    return "" if fits else f"a positive number up to {_LARGEST:g}"


def _switch(key: str, value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _list(key: str, value: Any) -> str:
    return "" if isinstance(value, list) and all(type(item) is int for item in value) else "a list of whole numbers"


def _word(key: str, value: Any) -> str:
    return "" if isinstance(value, str) else "a word"


def _words(key: str, value: Any) -> str:
    return "" if isinstance(value, list) and all(type(item) is str for item in value) else "a list of words"


def _factors(key: str, value: Any) -> str:
    fits = isinstance(value, list) and all(not _number("", item) for item in value)
    return "" if fits else "a list of positive numbers"


def _part(key: str, value: Any) -> str:
    return "" if isinstance(value, dict) else "an object with keys"


_KINDS: dict[str, Callable[[str, Any], str]] = {
    **dict.fromkeys(_SIZES, _size),
    **dict.fromkeys(_NUMBERS, _number),
    **dict.fromkeys(_SWITCHES, _switch),
    **dict.fromkeys(_LISTS, _list),
    **dict.fromkeys(_FACTORS, _factors),
    "mlp_layer_types": _words,
    **dict.fromkeys(("rope_type", "type", "topk_method", "scoring_func", "hidden_act"), _word),
    **dict.fromkeys(_PARTS, _part),
}

KEYS = frozenset((*_KINDS, "moe_layer_end_index"))
"""What is checked: all numbers and switches that a family reads, and more."""


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
