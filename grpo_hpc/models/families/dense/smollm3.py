"""SmolLM3: Llama, some of whose layers know no positions."""

from __future__ import annotations

from dataclasses import replace

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.family import Config, Family, decoder_rules, read_decoder
from grpo_hpc.models.shape import ModelShape


def read(config: Config) -> ModelShape:
    defaults = {"use_sliding_window": False, "rope_theta": 2_000_000.0, "tie_word_embeddings": True}
    shape = read_decoder({**defaults, **config}, "smollm3")
    return replace(shape, rotary=replace(shape.rotary, skipped=_skipped(config, shape.layers)))


def _skipped(config: Config, layers: int) -> tuple[int, ...]:
    """``no_rope_layers`` says 1 where there *are* positions."""
    every = config.get("no_rope_layer_interval", 4)
    rotated = config.get("no_rope_layers") or [int((layer + 1) % every != 0) for layer in range(layers)]
    if len(rotated) != layers:
        raise CheckpointError(f"no_rope_layers has {len(rotated)} entries for {layers} layers")
    return tuple(layer for layer, on in enumerate(rotated) if not on)


FAMILY = Family(read=read, rules=decoder_rules)
