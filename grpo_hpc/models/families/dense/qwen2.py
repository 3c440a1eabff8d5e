"""Qwen2 and Qwen2.5 (dense): Llama with a bias on the query, key and value projections."""

from __future__ import annotations

from grpo_hpc.models.families.family import Family, decoder_rules, read_decoder

FAMILY = Family(
    read=lambda config: read_decoder(config, "qwen2", qkv_bias=True),
    rules=decoder_rules,
    ignored=lambda shape: ("model.mtp_layers.",),  # of MiMo, which is a Qwen2 but for these
)
