"""GLM-4.7-Flash: GLM-4.5's experts behind DeepSeek-V3's latent attention."""

from __future__ import annotations

from dataclasses import replace

from grpo_hpc.models.families.experts import deepseek_v3
from grpo_hpc.models.families.family import Config, sparse_layers
from grpo_hpc.models.shape import ModelShape


def read(config: Config) -> ModelShape:
    experts, layers = deepseek_v3.balanced_experts(config), sparse_layers(config, dense=1)
    return deepseek_v3.read_latent({"rms_norm_eps": 1e-5, **config}, "glm4_moe_lite", experts, layers)


FAMILY = replace(deepseek_v3.FAMILY, read=read)
