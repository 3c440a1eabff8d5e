"""The shape of a model: plain sizes (:mod:`grpo_hpc.models.families.read_shape` reads them). Free of torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from grpo_hpc.errors import ConfigError


@dataclass(frozen=True)
class Experts:
    """Mixture-of-experts layers.

    Attributes:
        count: routed experts of a layer.
        topk: experts that serve one token.
        ffn: feed-forward width of one routed expert.
        shared_ffn: width of the expert that every token visits; 0 without.
        score: how router logits become weights.
        normalise: the weights of the chosen experts are scaled to sum 1.
        scale: factor on the weights after that.
        groups, topk_groups: experts are chosen within the best ``topk_groups`` of ``groups`` groups.
        group_best: the sum of that many of a group's best scores is the group's own.
        bias: the router has a correction bias that takes part in choosing only (DeepSeek-V3, arXiv 2412.19437).
        shared_gate: what the shared expert gives is multiplied by a sigmoid of the token (Qwen2-MoE).
    """

    count: int
    topk: int
    ffn: int
    shared_ffn: int = 0
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    topk_groups: int = 1
    group_best: int = 2
    bias: bool = False
    shared_gate: bool = False


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of queries and keys (RoFormer, arXiv 2104.09864).

    Attributes:
        theta: base of the frequencies.
        dim: dimensions of a head that are rotated, from the first on; the others have no position.
        interleaved: neighbouring dimensions are rotated together, not those half of ``dim`` apart.
        kind: how frequencies are scaled, in transformers' words; ``default`` is not at all.
        settings: of that scaling, as ``config.json`` gives them; lists are tuples.
        positions: longest sequence of the configuration, which some scalings take.
        skipped: numbers of the layers without positions.
    """

    theta: float
    dim: int
    interleaved: bool = False
    kind: str = "default"
    settings: tuple[tuple[str, Any], ...] = ()
    positions: int = 1
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Yarn:
    """YaRN rotary scaling (arXiv 2309.00071) with DeepSeek's two temperature terms."""

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

    Attributes:
        q_rank: rank of the query's compression; None when queries are projected directly.
        kv_rank: rank of what keys and values are made of: the KV cache holds ``kv_rank + rope_dim`` values a token.
        nope_dim, rope_dim: dimensions of a query/key head without and with rotary position.
        v_dim: dimensions of a value head.
    """

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    yarn: Yarn | None = None


@dataclass(frozen=True)
class Vision:
    """The vision tower of a vision-language model; ``out`` is the width of the tokens it hands to the decoder."""

    layers: int
    hidden: int
    ffn: int
    out: int
    patch: int
    temporal_patch: int
    channels: int
    merge: int
    positions: int = 0
    deepstack: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one decoder-only transformer, with its vision tower if it has one.

    Attributes:
        family: Hugging Face ``model_type``.
        head_dim: dimensions of a query head (with MLA: ``nope_dim + rope_dim``).
        ffn: feed-forward width of one of the two gated projections in dense layers.
        vocab: rows of the embedding, unpadded.
        tied: input and output embeddings are one matrix.
        qkv_bias: query, key and value projections have a bias.
        qk_norm: queries and keys are normalised: each head by itself, before or after it is rotated, or all heads of a
            token together.
        rotary: positions of queries and keys; with MLA, those of their ``rope_dim`` dimensions before its own YaRN.
        max_position: longest sequence; within a sliding window attention is full attention, so no longer than one.
        norms: of a layer's two parts: before each, around it (its output is normed, too), or after it alone.
        embedding_scale: factor on embedded tokens; ``residual_scale``: on what each part of a layer adds.
        softmax_scale: factor on products of queries and keys; None is ``head_dim ** -0.5``.
        logit_divisor: of logits.
        moe_layers: numbers of the layers with experts.
        unstated: keys that config.json leaves out, and vLLM takes another default for than transformers, with the
            value of transformers.
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
    norm_eps: float
    rotary: Rotary
    max_position: int
    qkv_bias: bool = False
    qk_norm: Literal["head", "rotated", "token"] | None = None
    norms: Literal["before", "around", "after"] = "before"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    softmax_scale: float | None = None
    logit_divisor: float = 1.0
    moe_layers: tuple[int, ...] = ()
    experts: Experts | None = None
    mla: Mla | None = None
    vision: Vision | None = None
    unstated: tuple[tuple[str, Any], ...] = ()

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Numbers of the layers without experts."""
        experts = set(self.moe_layers)
        return tuple(layer for layer in range(self.layers) if layer not in experts)


_NOT_SAMPLED_ON_A_CPU = {
    "minimax_m2": "takes no new weights for the norms",
    "ernie4_5_moe": "chooses experts without the bias of the routers",
}


def require_engine(shape: ModelShape, device: str) -> None:
    """Refuse a model that vLLM reads otherwise, or whose weights it cannot replace on ``device``.

    Raises:
        ConfigError: config.json is silent where vLLM has another default than transformers; or the run is on a CPU, and
            vLLM's build for it cannot sample from the model that is trained.
    """
    if shape.unstated:
        keys = ", ".join(f'"{key}": {json.dumps(value)}' for key, value in shape.unstated)
        raise ConfigError(
            f"the model's config.json leaves out {' and '.join(key for key, _ in shape.unstated)}: vLLM would compute "
            "another model than the one that is trained",
            f"Add {keys} to it, which is what transformers takes.",
        )
    if shape.mla and device == "cpu":
        raise ConfigError(
            f"resources.device is cpu, and vLLM's CPU build takes no new weights for the latent attention of "
            f"{shape.family}",
            "Train it on a GPU. Checkpoints are converted and compared on a CPU, too.",
        )
    if device == "cpu" and shape.family in _NOT_SAMPLED_ON_A_CPU:
        raise ConfigError(
            f"resources.device is cpu, and vLLM's CPU build {_NOT_SAMPLED_ON_A_CPU[shape.family]} of {shape.family}",
            "Train it on a GPU. Checkpoints are converted and compared on a CPU, too.",
        )


def require_experts(shape: ModelShape, given: Collection[str]) -> None:
    """Refuse the ``given`` keys of the run file's section ``moe`` that mean nothing for a model.

    Raises:
        ConfigError: it has no experts, or its routers have no bias that could move.
    """
    if given and shape.experts is None:
        raise ConfigError(f"{', '.join(f'moe.{key}' for key in sorted(given))}: {shape.family} has no experts")
    if "moe_router_bias_update_rate" in given and shape.experts and not shape.experts.bias:
        raise ConfigError(
            f"moe.moe_router_bias_update_rate: the routers of {shape.family} have no bias, and neither vLLM nor a "
            f"Hugging Face folder has a place for one",
            "Balance its experts with moe.moe_aux_loss_coeff; a bias is part of deepseek_v3 and glm4_moe.",
        )
