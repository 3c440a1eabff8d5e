"""The shape of a model, read from its Hugging Face ``config.json``. Free of torch: the planner reads it too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.errors import CheckpointError

FAMILIES = ("llama", "qwen2", "qwen3")

# Llama 3.1's frequency scaling; Megatron-Core has exactly these constants built in (arXiv 2407.21783, section 3.4).
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one decoder-only transformer.

    Attributes:
        family: Hugging Face ``model_type``.
        ffn: feed-forward width of one of the two gated projections.
        vocab: rows of the embedding, unpadded.
        tied: input and output embeddings are one matrix.
        qkv_bias: query, key and value projections have a bias.
        qk_norm: queries and keys are normalised per head.
        rope_scaling_factor: Llama-3 frequency scaling; None without.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    norm_eps: float
    rope_theta: float
    rope_scaling_factor: float | None
    max_position: int

    def layer_parameters(self) -> int:
        """Parameters of one transformer layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (queries + 2 * keys) + queries * self.hidden
        biases = (queries + 2 * keys) if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + biases + norms + 3 * self.hidden * self.ffn

    def embedding_parameters(self) -> int:
        """Parameters of the input embedding; the output matrix has as many when it is not tied."""
        return self.vocab * self.hidden

    def parameters(self) -> int:
        """All parameters, as ``transformers`` counts them."""
        embeddings = self.embedding_parameters() * (1 if self.tied else 2)
        return self.layers * self.layer_parameters() + embeddings + self.hidden


def read_shape(path: str | Path) -> ModelShape:
    """The shape of a model folder, or of a ``config.json`` file.

    Raises:
        CheckpointError: there is no readable configuration, or the family or one of its options is not supported.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no model configuration at {file}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    try:
        return shape_of(config)
    except KeyError as error:
        raise CheckpointError(f"{file} has no {error.args[0]!r}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error.message}", error.hint) from error


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a Hugging Face configuration describes (see :func:`read_shape`)."""
    family = config.get("model_type", "")
    if family not in FAMILIES:
        raise CheckpointError(
            f"model_type {family!r} is not supported", f"Supported families: {', '.join(FAMILIES)} (dense)."
        )
    _refuse_variants(config)
    theta, factor = _rope(config)
    heads = config["num_attention_heads"]
    return ModelShape(
        family=family,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or (128 if family == "qwen3" else config["hidden_size"] // heads),
        ffn=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling_factor=factor,
        max_position=config["max_position_embeddings"],
    )


def _refuse_variants(config: dict[str, Any]) -> None:
    supported = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
    for key, wanted in supported.items():
        if config.get(key, wanted) != wanted:
            raise CheckpointError(f"{key}: {config[key]!r} is not supported (only {wanted!r})")


def _rope(config: dict[str, Any]) -> tuple[float, float | None]:
    """Base and Llama-3 scaling factor, from the present key (``rope_parameters``) or the older two."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "llama3" and all(rope.get(key) == value for key, value in _LLAMA3_ROPE.items()):
        return theta, float(rope["factor"])
    raise CheckpointError(f"rotary scaling {rope} is not supported", f"Supported: none, or llama3 with {_LLAMA3_ROPE}.")
