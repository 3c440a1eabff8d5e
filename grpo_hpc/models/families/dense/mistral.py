"""Mistral: Llama, with a head size of its own and, in the first release, a sliding window."""

from __future__ import annotations

from grpo_hpc.models.families.family import Family, decoder_rules, read_decoder

FAMILY = Family(read=lambda config: read_decoder(config, "mistral"), rules=decoder_rules)
