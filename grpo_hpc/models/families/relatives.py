"""Of a model of a family that is not supported: which supported one it resembles most, and what differs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import FAMILIES, family
from grpo_hpc.models.families.config_values import KEYS, checked
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.models.weight_map import entries

Size = tuple[int, ...]

# Numbers and switches that say nothing about what a forward pass in training computes.
_BESIDE = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "initializer_range", "pretraining_tp"),
    *("attention_dropout", "residual_dropout", "output_router_logits", "router_aux_loss_coef", "max_window_layers"),
    *("num_nextn_predict_layers", "output_attentions", "output_hidden_states", "return_dict", "ep_size"),
)
_KNOWN = frozenset((*KEYS, *_BESIDE))


@dataclass(frozen=True)
class Relative:
    """A supported family beside a model of another.

    Layers and experts of one kind are named once, with ``*`` for their numbers.

    Attributes:
        share: of the names of tensors that either has, those that both have.
        refused: what its reader says of the configuration.
        unread: options of the configuration that no supported family reads.
        unknown: tensors that it does not have.
        missing: tensors of it that the model does not have.
        sizes: tensors that it would give another size: name, the model's, its own.
    """

    family: str
    share: float
    refused: tuple[str, ...]
    unread: tuple[str, ...]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]
    sizes: tuple[tuple[str, Size, Size], ...]


def nearest(config: Mapping[str, Any], tensors: Mapping[str, Size]) -> Relative | None:
    """The supported family whose tensors are most like ``tensors`` (names and shapes); None where none can be read."""
    found = [relative for name in FAMILIES if (relative := _beside(name, config, tensors)) is not None]
    return max(found, key=lambda relative: (relative.share, -len(relative.refused), -len(relative.sizes)), default=None)


def _beside(name: str, config: Mapping[str, Any], tensors: Mapping[str, Size]) -> Relative | None:
    shape, refused = _read(name, dict(config))
    if shape is None:
        return None
    rules = family(name).rules(shape)
    own = {
        hf_name: size
        for entry in entries(rules, "local")
        for hf_name, size in zip(entry.hf_names, entry.layout.hf_shapes, strict=True)
    }
    ours, theirs = _kinds(own), _kinds(tensors)
    sizes = {_kind(n): (tensors[n], size) for n, size in own.items() if n in tensors and tensors[n] != size}
    return Relative(
        name,
        len(ours & theirs) / max(1, len(ours | theirs)),
        refused,
        tuple(sorted(key for key, value in config.items() if key not in _KNOWN and isinstance(value, int | float))),
        tuple(sorted(theirs - ours)),
        tuple(sorted(ours - theirs)),
        tuple((kind, *both) for kind, both in sorted(sizes.items())),
    )


def _read(name: str, config: dict[str, Any]) -> tuple[ModelShape | None, tuple[str, ...]]:
    """The shape by the reader of family ``name``, without the options that it refuses, and what it says of those."""
    refused: list[str] = []
    while True:
        try:
            return replace(family(name).read(checked(config)), family=name), tuple(refused)
        except CheckpointError as error:
            option = error.message.partition(":")[0].partition(" ")[0]
            if config.pop(option, None) is None:
                return None, ()
            refused.append(error.message)
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None, ()


def _kinds(names: Collection[str]) -> set[str]:
    return {_kind(name) for name in names}


def _kind(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
