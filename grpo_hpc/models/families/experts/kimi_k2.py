"""Kimi-K2 and Moonlight in its name: DeepSeek-V3 with more experts in fewer groups."""

from __future__ import annotations

from dataclasses import replace

from grpo_hpc.models.families.experts import deepseek_v3

FAMILY = replace(deepseek_v3.FAMILY, read=lambda config: deepseek_v3.read(config, "kimi_k2"))
