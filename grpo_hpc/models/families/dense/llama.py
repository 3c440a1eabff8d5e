"""Llama 1-3.x and models of the same architecture (SmolLM2)."""

from __future__ import annotations

from grpo_hpc.models.families.family import Family, decoder_rules, read_decoder

FAMILY = Family(read=lambda config: read_decoder(config, "llama"), rules=decoder_rules)
