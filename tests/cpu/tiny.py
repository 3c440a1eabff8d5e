"""Small random models of every family, with awkward sizes, in Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCAB = 263  # 256 bytes, three specials and a few rows no tokenizer reaches: divisible by no parallel size


_EXPERTS = {"num_experts_per_tok": 2, "norm_topk_prob": True}
_VISION = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 44, "out_hidden_size": 128}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 48,
}
_BALANCED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.8,
}
# What a family's configuration has besides the common sizes; names with a plus are variants of a family.
OWN = {
    "llama": {"head_dim": 64},  # not hidden / heads
    "llama+3.1": {
        "head_dim": 64,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "mistral": {"head_dim": 64, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 64},
    "qwen3_moe": {"head_dim": 32, "num_experts": 4, "moe_intermediate_size": 48, **_EXPERTS},
    "qwen3_moe+dense": {
        "head_dim": 32,
        "num_experts": 4,
        "moe_intermediate_size": 48,
        "mlp_only_layers": [1],
        **_EXPERTS,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "moe_intermediate_size": 48,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 48,
        "n_group": 4,
        "topk_group": 2,
        "rope_scaling": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
        "num_experts_per_tok": 4,
        "rms_norm_eps": 1e-6,
    },
    "deepseek_v3+moonlight": {  # and Kimi-K2
        **_LATENT,
        **_BALANCED,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": None,
        "rms_norm_eps": 1e-5,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.446,
    },
    "deepseek_v2": {
        **_LATENT,
        "n_routed_experts": 8,
        "moe_intermediate_size": 48,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "num_experts_per_tok": 3,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
        "rms_norm_eps": 1e-6,
        "rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "glm4_moe": {**_BALANCED, "head_dim": 32, "first_k_dense_replace": 1, "attention_bias": True, "use_qk_norm": True},
    "glm4_moe_lite": {**_LATENT, **_BALANCED, "v_head_dim": 48, "mlp_layer_types": None, "rms_norm_eps": 1e-5},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
    },
    "minimax_m2": {
        "head_dim": 32,
        "rotary_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    },
    "hy_v3": {
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "router_scaling_factor": 2.826,
        "expert_hidden_dim": 48,
        "first_k_dense_replace": 1,
        "qk_norm": True,
        "route_norm": True,
    },
    "seed_oss": {"head_dim": 64},
    "smollm3": {"no_rope_layer_interval": 2},
    "phi3": {},
    "phi3+mini": {
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 128,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0 + 0.1 * n for n in range(12)],
            "long_factor": [1.0 + n for n in range(12)],
        },
    },
    "glm4": {"head_dim": 32, "attention_bias": True},
    "olmo2": {},
    "hunyuan_v1_dense": {
        "head_dim": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0},
    },
    "granite": {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.1,
        "logits_scaling": 4.0,
    },
    "ernie4_5": {"head_dim": 32},
    "ernie4_5_moe": {
        "moe_num_experts": 8,
        "moe_k": 3,
        "moe_intermediate_size": 48,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
    },
    "ministral3": {
        "head_dim": 32,
        "rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
    "llama+dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 6.0}},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "qwen2_5_vl": {"vision_config": _VISION},
    "qwen3_vl": {"vision_config": {**_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}},
}


def has_experts(family: str) -> bool:
    return any("expert" in key for key in OWN[family])


def save_tiny_model(path: Path, family: str = "llama", tied: bool = True, layers: int = 4, seed: int = 0) -> Path:
    """A random model of ``family`` in fp32 with a byte-level tokenizer and a chat template."""
    import torch

    model = tiny_model(family, tied, layers, seed)
    with torch.no_grad():
        for name, parameter in (*model.named_parameters(), *model.named_buffers()):
            if any(part in name for part in ("norm", "bias", "embed", "ln_q")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    _save_tokenizer(path)
    return path


def tiny_model(family: str, tied: bool, layers: int, seed: int) -> Any:
    """The model itself, with the initial values of ``transformers``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    common = {
        "vocab_size": VOCAB,
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.08,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    }
    own, model_type = OWN[family], family.split("+")[0]
    torch.manual_seed(seed)
    if "vision_config" in own:
        sections = {"qwen2_5_vl": [4, 6, 6], "qwen3_vl": [12, 10, 10]}[model_type]  # sum: half a head's dimensions
        text = common | {"rope_scaling": {"rope_type": "default", "mrope_section": sections}}
        text |= {"head_dim": 64} if model_type == "qwen3_vl" else {}
        config = AutoConfig.for_model(model_type, text_config=text, tie_word_embeddings=tied, **own)
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    config = AutoConfig.for_model(model_type, tie_word_embeddings=tied, **(common | own))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _save_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: number for number, char in enumerate(alphabet)}
    vocab |= {"<|bos|>": 256, "<|eos|>": 257, "<|pad|>": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>"
    )
    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    fast.chat_template = turns + "{% if loud %}LOUD {% endif %}assistant:"
    fast.save_pretrained(path)
