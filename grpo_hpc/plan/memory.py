"""Rough memory of the fullest rank, term by term, each with the formula that it comes from.

Weights, gradients and optimizer state follow Megatron-Core's mixed-precision layout; activations follow the per-layer
count of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), without
the score matrix, which no attention kernel in use keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.models.shape import ModelShape

_BYTES = {"float32": 4, "bfloat16": 2}
_OPTIMIZER_BYTES = {"float32": 8, "bfloat16": 12}  # Adam's two moments; bf16 adds the fp32 master weights
_GRADIENT_BYTES = 4  # gradients are accumulated in fp32 in both precisions
_LOGITS_CHUNK = 1024  # tokens whose logits exist at a time


@dataclass(frozen=True)
class Term:
    """One part of a rank's memory.

    Attributes:
        where: ``training`` or ``rollout``.
        formula: the formula with its numbers.
    """

    name: str
    where: str
    bytes: int
    formula: str


def parameters_per_rank(shape: ModelShape, tp: int, pp: int) -> int:
    """Parameters on the fullest rank: of its pipeline stage, cut by tp."""
    layers = math.ceil(shape.layers / pp) * shape.layer_parameters()
    embedding = shape.embedding_parameters()
    if pp == 1:
        return math.ceil(shape.parameters() / tp)
    # the last stage holds the output matrix, whether tied or not, and the final norm
    return math.ceil((layers + embedding + shape.hidden) / tp)


def memory_terms(cfg: RunConfig, shape: ModelShape, schedule: BatchSchedule) -> list[Term]:
    """Bytes on the fullest rank, by name."""
    tp, pp = cfg.parallel.tensor_model_parallel_size, cfg.parallel.pipeline_model_parallel_size
    local = parameters_per_rank(shape, tp, pp)
    training = [*_state_terms(cfg, local, schedule.dp), *_work_terms(cfg, shape)]
    return [*training, *_rollout_terms(cfg, shape, schedule.completions_per_rank_per_rollout)]


def _state_terms(cfg: RunConfig, local: int, dp: int) -> list[Term]:
    """Weights, gradients and optimizer state of ``local`` parameters."""
    width, state = _BYTES[cfg.model.dtype], _OPTIMIZER_BYTES[cfg.model.dtype]
    terms = [
        Term("weights", "training", local * width, f"{local:,} parameters * {width} B"),
        Term("gradients", "training", local * _GRADIENT_BYTES, f"{local:,} parameters * {_GRADIENT_BYTES} B"),
    ]
    if cfg.parallel.use_distributed_optimizer:
        formula = f"{local:,} parameters * {state} B / dp {dp}"
        terms.append(Term("optimizer", "training", math.ceil(local * state / dp), formula))
    else:
        terms.append(Term("optimizer", "training", local * state, f"{local:,} parameters * {state} B"))
    if cfg.algorithm.beta > 0:
        terms.append(Term("reference model", "training", local * width, f"{local:,} parameters * {width} B"))
    return terms


def _work_terms(cfg: RunConfig, shape: ModelShape) -> list[Term]:
    """Activations of the micro-batches in flight (pp on the first stage), and one chunk of logits."""
    par, width = cfg.parallel, _BYTES[cfg.model.dtype]
    tp, pp, cp = par.tensor_model_parallel_size, par.pipeline_model_parallel_size, par.context_parallel_size
    tokens = cfg.batch.micro_batch_size * sequence_length(cfg, shape) // cp
    layers = math.ceil(shape.layers / pp)
    # per token and layer: residual and norm inputs whole; query, key, value, attention output and MLP cut by tp
    whole = 4 * shape.hidden
    cut = 2 * (shape.heads + shape.kv_heads) * shape.head_dim + 4 * shape.ffn
    activations = tokens * layers * pp * (whole + math.ceil(cut / tp)) * width
    chunk = min(tokens, _LOGITS_CHUNK)
    vocab = math.ceil(shape.vocab / tp)
    return [
        Term(
            "activations",
            "training",
            activations,
            f"{tokens:,} tokens * {layers} layers * pp {pp} * ({whole:,} + {cut:,} / tp {tp}) * {width} B",
        ),
        Term("logits", "training", 2 * chunk * vocab * 4, f"2 * {chunk:,} tokens * {vocab:,} entries * 4 B"),
    ]


def _rollout_terms(cfg: RunConfig, shape: ModelShape, completions: int) -> list[Term]:
    """vLLM's weights and KV cache on one rank, whose engine generates ``completions`` per rollout."""
    roll = cfg.rollout
    width, tp = _BYTES[roll.vllm_dtype], roll.vllm_tensor_parallel_size
    weights = math.ceil(shape.parameters() * width / tp)
    terms = [Term("vLLM weights", "rollout", weights, f"{shape.parameters():,} parameters * {width} B / tp {tp}")]
    if cfg.resources.device == "cpu":
        size = int(roll.vllm_kv_cache_gib * 2**30)
        terms.append(Term("KV cache", "rollout", size, f"{roll.vllm_kv_cache_gib:g} GiB (vllm_kv_cache_gib)"))
    else:
        per_token = kv_bytes_per_token(cfg, shape)
        tokens = min(completions, roll.vllm_max_num_seqs or completions) * sequence_length(cfg, shape)
        formula = f"{tokens:,} tokens * {per_token:,} B, if all completions run at once at full length"
        terms.append(Term("KV cache", "rollout", tokens * per_token, formula))
    return terms


def kv_bytes_per_token(cfg: RunConfig, shape: ModelShape) -> int:
    """Bytes that keys and values of one token take on one rank of an engine."""
    heads = math.ceil(shape.kv_heads / cfg.rollout.vllm_tensor_parallel_size)
    return 2 * shape.layers * heads * shape.head_dim * _BYTES[cfg.rollout.vllm_dtype]


def sequence_length(cfg: RunConfig, shape: ModelShape) -> int:
    """Longest prompt + completion in tokens that the run file and the model allow."""
    if cfg.rollout.vllm_max_model_len is not None:
        return cfg.rollout.vllm_max_model_len
    if cfg.data.max_length is not None:
        return min(cfg.data.max_length + cfg.rollout.max_completion_length, shape.max_position)
    return shape.max_position
