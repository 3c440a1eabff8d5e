"""Phi-3 and Phi-4: Llama whose projections of one input are one tensor."""

from __future__ import annotations

from dataclasses import replace

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder
from grpo_hpc.models.layouts import Fused
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import Rule

_FUSED = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}


def rules(shape: ModelShape) -> list[Rule]:
    return [_fused(rule) for rule in decoder_rules(shape)]


def _fused(rule: Rule) -> Rule:
    """Several tensors are one, under the name that ``_FUSED`` has for the first."""
    if len(rule.hf) == 1:
        return rule
    (first,) = (name for name in _FUSED if name in rule.hf[0])
    return replace(rule, hf=(rule.hf[0].replace(first, _FUSED[first]),), layout=Fused(rule.layout))


def read(config: Config) -> ModelShape:
    return read_decoder({"rms_norm_eps": 1e-5, **config}, "phi3")


FAMILY = Family(read=read, rules=rules)
