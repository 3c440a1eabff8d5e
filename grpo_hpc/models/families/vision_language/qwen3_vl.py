"""Qwen3-VL (dense): the Qwen3 decoder and a vision transformer that feeds its first layers too (DeepStack)."""

from __future__ import annotations

from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder
from grpo_hpc.models.families.vision_language.tower import biased, merged_width, tower, weight
from grpo_hpc.models.shape import ModelShape, Vision
from grpo_hpc.models.weight_map import Rule


def read(config: Config) -> ModelShape:
    tower, text = config["vision_config"], config["text_config"]
    vision = Vision(
        layers=tower["depth"],
        hidden=tower["hidden_size"],
        ffn=tower["intermediate_size"],
        out=tower["out_hidden_size"],
        patch=tower["patch_size"],
        temporal_patch=tower["temporal_patch_size"],
        channels=tower["in_channels"],
        merge=tower["spatial_merge_size"],
        positions=tower["num_position_embeddings"],
        deepstack=len(tower["deepstack_visual_indexes"]),
    )
    head_dim, tied = text.get("head_dim") or 128, bool(config.get("tie_word_embeddings"))
    return read_decoder(text, "qwen3_vl", qk_norm="head", head_dim=head_dim, tied=tied, vision=vision)


def rules(shape: ModelShape) -> list[Rule]:
    return [*decoder_rules(shape, "model.language_model."), *tower(shape, "model.visual.", _rows)]


def _rows(vision: Vision) -> tuple[list[Rule], list[Rule]]:
    hidden, wide = vision.hidden, merged_width(vision)
    block = [
        *(row for norm in ("norm1", "norm2") for row in biased(f"blocks.{{i}}.{norm}", hidden)),
        *biased("blocks.{i}.attn.qkv", 3 * hidden, hidden),
        *biased("blocks.{i}.attn.proj", hidden, hidden),
        *biased("blocks.{i}.mlp.linear_fc1", vision.ffn, hidden),
        *biased("blocks.{i}.mlp.linear_fc2", hidden, vision.ffn),
    ]
    around = [
        *biased("patch_embed.proj", hidden, vision.channels, vision.temporal_patch, vision.patch, vision.patch),
        weight("pos_embed", vision.positions, hidden),
        *_merger("merger.", hidden, vision.out, wide),
    ]
    for number in range(vision.deepstack):
        around += _merger(f"deepstack_merger_list.{number}.", wide, vision.out, wide)
    return block, around


def _merger(name: str, norm: int, out: int, wide: int) -> list[Rule]:
    """Norm (before or after four patches are joined) and two layers to the decoder's width."""
    fc1, fc2 = biased(name + "linear_fc1", wide, wide), biased(name + "linear_fc2", out, wide)
    return [*biased(name + "norm", norm), *fc1, *fc2]


FAMILY = Family(read=read, rules=rules)
