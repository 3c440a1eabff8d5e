"""Qwen2.5-VL: the Qwen2 decoder and a windowed vision transformer with a gated feed-forward network."""

from __future__ import annotations

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder
from grpo_hpc.models.families.vision_language.tower import biased, merged_width, tower, weight
from grpo_hpc.models.shape import ModelShape, Vision
from grpo_hpc.models.weight_map import Rule


def read(config: Config) -> ModelShape:
    tower, text = config["vision_config"], config.get("text_config") or config
    vision = Vision(
        layers=tower["depth"],
        hidden=tower["hidden_size"],
        ffn=tower["intermediate_size"],
        out=tower["out_hidden_size"],
        patch=tower.get("patch_size") or tower["spatial_patch_size"],
        temporal_patch=tower.get("temporal_patch_size", 2),
        channels=tower.get("in_channels") or tower.get("in_chans", 3),
        merge=tower.get("spatial_merge_size", 2),
    )
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings")))
    return read_decoder(text, "qwen2_5_vl", qkv_bias=True, tied=tied, vision=vision)


def rules(shape: ModelShape) -> list[Rule]:
    return [*decoder_rules(shape), *tower(shape, "visual.", _rows)]


def _rows(vision: Vision) -> tuple[list[Rule], list[Rule]]:
    hidden, wide = vision.hidden, merged_width(vision)
    block = [
        *(weight(f"blocks.{{i}}.{norm}", hidden) for norm in ("norm1", "norm2")),
        *biased("blocks.{i}.attn.qkv", 3 * hidden, hidden),
        *biased("blocks.{i}.attn.proj", hidden, hidden),
        *biased("blocks.{i}.mlp.gate_proj", vision.ffn, hidden),
        *biased("blocks.{i}.mlp.up_proj", vision.ffn, hidden),
        *biased("blocks.{i}.mlp.down_proj", hidden, vision.ffn),
    ]
    around = [
        weight("patch_embed.proj", hidden, vision.channels, vision.temporal_patch, vision.patch, vision.patch),
        weight("merger.ln_q", hidden),
        *biased("merger.mlp.0", wide, wide),
        *biased("merger.mlp.2", vision.out, wide),
    ]
    return block, around


FAMILY = Family(read=read, rules=rules)
