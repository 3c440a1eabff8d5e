"""OLMo 2: norms behind both parts of a layer and none before, and over all query (and all key) heads of a token."""

from __future__ import annotations

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder, residual_norm_rules
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule

HF = "model.layers.{i}."


def read(config: Config) -> ModelShape:
    return read_decoder({"rms_norm_eps": 1e-5, **config}, "olmo2", qk_norm="token", norms="after")


def rules(shape: ModelShape) -> list[Rule]:
    before = (HF + "input_layernorm.weight", HF + "post_attention_layernorm.weight")
    behind = residual_norm_rules(shape, HF + "post_attention_layernorm", HF + "post_feedforward_layernorm")
    return [*(rule for rule in decoder_rules(shape) if rule.hf[0] not in before), *behind]


FAMILY = Family(read=read, rules=rules)
