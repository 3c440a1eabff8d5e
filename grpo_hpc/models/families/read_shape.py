"""The shape of a model from its Hugging Face ``config.json``, in the words of its family. Free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo_hpc.errors import CheckpointError
from grpo_hpc.files import read_text
from grpo_hpc.models.families import family
from grpo_hpc.models.families.config_values import checked
from grpo_hpc.models.shape import Experts, ModelShape

_LARGEST = 1 << 24  # bytes of a config.json
QUANTISED = ("quantization_config", "compression_config")
"""Keys of a configuration that say how weights are quantised."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a model folder, or of a ``config.json`` file.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    try:
        config = json.loads(read_text(file, _LARGEST))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no model configuration at {file}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds a {type(config).__name__}, not a model configuration")
    return config


def read_shape(path: str | Path) -> ModelShape:
    """The shape of a model folder, or of a ``config.json`` file.

    Raises:
        CheckpointError: there is no readable configuration, or the family or one of its options is not supported.
    """
    config = read_config(path)
    try:
        return shape_of(config)
    except CheckpointError as error:
        raise CheckpointError(f"the configuration of {path}: {error.message}", error.hint) from error


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a Hugging Face configuration describes (see :func:`read_shape`)."""
    described = family(config.get("model_type", ""))
    _require_plain_weights(config)
    try:
        shape = described.read(checked(config))
    except KeyError as error:
        raise CheckpointError(f"{error.args[0]!r} is missing or null") from error
    for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_position"):
        size = getattr(shape, name)
        if not isinstance(size, int) or size < 1:
            raise CheckpointError(f"{name} is {size!r}, not a positive number")
    if shape.heads % shape.kv_heads:
        raise CheckpointError(f"{shape.heads} query heads cannot share {shape.kv_heads} key/value heads evenly")
    if shape.experts is not None:
        _require_choice(shape.experts)
    return shape


def _require_choice(experts: Experts) -> None:
    """Refuse routing that cannot be carried out."""
    if experts.topk > experts.count:
        raise CheckpointError(f"{experts.topk} experts for a token cannot be chosen from {experts.count}")
    if experts.count % experts.groups or experts.topk_groups > experts.groups:
        raise CheckpointError(
            f"{experts.topk_groups} of {experts.groups} groups cannot be chosen from {experts.count} experts"
        )
    each = experts.count // experts.groups
    if experts.groups > 1 and (each < experts.group_best or experts.topk > experts.topk_groups * each):
        raise CheckpointError(
            f"{experts.topk} experts for a token cannot be chosen from {experts.topk_groups} groups of {each}, "
            f"ranked by their best {experts.group_best}"
        )


def _require_plain_weights(config: dict[str, Any]) -> None:
    """Refuse weights that are stored in blocks with scales: no map knows these tensors, and exports copy the config."""
    for part in (config, config.get("text_config")):
        for key in QUANTISED:
            if isinstance(part, dict) and (said := part.get(key)) is not None:
                method = said.get("quant_method") if isinstance(said, dict) else None
                raise CheckpointError(
                    f"{key}: the weights are quantised{f' ({method})' if method else ''}, which cannot be trained or "
                    "converted",
                    "Take the model's folder in bfloat16 or float32; of FP8 and packed INT4 weights "
                    "`grpo-hpc checkpoint convert SRC DST --to hf` makes one. If the key is a leftover, "
                    f"remove {key} from config.json.",
                )
