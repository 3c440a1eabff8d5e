"""Small random models of every family, with awkward sizes, in Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

VOCAB = 263  # 256 bytes, three specials and a few rows no tokenizer reaches: divisible by no parallel size


def save_tiny_model(path: Path, family: str = "llama", tied: bool = True, layers: int = 4, seed: int = 0) -> Path:
    """A random model of ``family`` in fp32 with a byte-level tokenizer and a chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # not hidden/heads, as in Qwen3; Qwen2 knows no such key
    wide_heads = {} if family == "qwen2" else {"head_dim": 64}
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.08,
        rms_norm_eps=1e-5,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        **wide_heads,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "embed" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    _save_tokenizer(path)
    return path


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
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    fast.save_pretrained(path)
