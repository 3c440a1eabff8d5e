"""ERNIE 4.5 (dense): Llama whose rotated pairs are neighbours."""

from __future__ import annotations

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder, require, rotary_of
from grpo_hpc.models.shape import ModelShape


def read(config: Config) -> ModelShape:
    require(config, use_bias=False)
    known = {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, **config}
    head_dim = config.get("head_dim", 128)
    rotary = rotary_of(known, head_dim, interleaved=True)
    return read_decoder(known, "ernie4_5", head_dim=head_dim, rotary=rotary)


FAMILY = Family(read=read, rules=decoder_rules)
