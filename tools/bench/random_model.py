"""A random model of a real shape with a tokenizer of one word per token, and prompts of exact length for it.

Random weights sample nearly uniformly, so completions run to their full length and every phase has a known size. With
``stop_tokens`` that many words end a completion, which makes lengths geometric, cut off at the longest.

    python -m tools.bench.random_model FOLDER SHAPE
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any


def _qwen3(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, **others: Any) -> dict[str, Any]:
    """Keys of a public Qwen3 configuration; what is not named is the family's default."""
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        **others,
    }


def _mixtral(layers: int) -> dict[str, Any]:
    """Mixtral 8x7B with fewer layers."""
    widths = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 128, "tie_word_embeddings": False}
    return {"model_type": "mixtral", "vocab_size": 32000, "num_hidden_layers": layers, **widths, **experts}


def _deepseek_v3(layers: int) -> dict[str, Any]:
    """DeepSeek-V3's latent attention and routing at the widths of DeepSeek-V2-Lite, with fewer layers."""
    widths = {"hidden_size": 2048, "intermediate_size": 10944, "num_attention_heads": 16, "num_key_value_heads": 16}
    latent = {
        "q_lora_rank": 768,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    experts = {"n_routed_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "n_shared_experts": 2}
    routing = {"first_k_dense_replace": 1, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5}
    more = {
        "model_type": "deepseek_v3",
        "topk_method": "noaux_tc",  # vLLM has other defaults than transformers
        "scoring_func": "sigmoid",
        "vocab_size": 102400,
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
    }
    return {**more, **widths, **latent, **experts, **routing, "norm_topk_prob": True, "num_nextn_predict_layers": 0}


_EXPERTS = {"model_type": "qwen3_moe", "moe_intermediate_size": 512, "num_experts": 64, "num_experts_per_tok": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "toy": _qwen3(128, 256, 2, 4, 2, head_dim=32, vocab_size=2048),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8),
    "mixtral-3b": _mixtral(2),
    "latent-3b": _deepseek_v3(6),
    "moe-3b": _qwen3(1024, 3072, 28, 16, 4, tie_word_embeddings=False, norm_topk_prob=True, **_EXPERTS),
}
PAD, EOS = 0, 1


def save_random_model(folder: Path, name: str, seed: int = 0) -> None:
    """Write the shape called ``name`` with random bf16 weights and its tokenizer to ``folder``, unless it is there."""
    if (folder / "done").exists():
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = dict(SHAPES[name])
    config = AutoConfig.for_model(
        shape.pop("model_type"),
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **shape,
    )
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():  # transformers zeroes the padding token's row; a norm makes a huge gradient of that
        model.get_input_embeddings().weight[PAD].normal_(0, config.initializer_range)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _save_tokenizer(folder, config.vocab_size)
    (folder / "done").touch()


def set_stop_tokens(folder: Path, count: int) -> None:
    """Let ``count`` words end a completion, besides EOS: engines read them from ``generation_config.json``."""
    ids = [EOS, *range(2, 2 + count)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids, "pad_token_id": PAD}))


def stop_tokens_for(longest: int, vocabulary: int) -> int:
    """How many words must end a completion for the mean length to be half of ``longest``.

    The mean of min(geometric, L) is (1 - exp(-x)) / x * L for x = L * probability of an end; x = 1.594 gives a half,
    and a fifth of the completions is cut off.
    """
    return round(1.594 / longest * vocabulary)


def _save_tokenizer(folder: Path, vocabulary: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{n}": n for n in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)


def save_prompts(file: Path, count: int, length: int, vocabulary: int, seed: int = 0) -> None:
    """Write ``count`` prompts of exactly ``length`` tokens."""
    draw = random.Random(seed)
    with file.open("w") as out:
        for _ in range(count):
            text = " ".join(f"w{draw.randrange(2, vocabulary)}" for _ in range(length))
            out.write(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n")


if __name__ == "__main__":
    save_random_model(Path(sys.argv[1]), sys.argv[2])
