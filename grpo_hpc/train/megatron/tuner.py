"""Which parameters are trained: all, all but those that a pattern names, or adapters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_hpc.config import RunConfig
from grpo_hpc.config.adapters import named_linears, target_linears
from grpo_hpc.errors import ConfigError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.counting import require_linears
from grpo_hpc.models.lora import Adapters, add_adapters
from grpo_hpc.models.movers import local_parameters
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.models.weight_map import entries


def adapters_of(cfg: RunConfig) -> Adapters | None:
    """The adapters that the run trains; None when it trains the model's own parameters."""
    t = cfg.tuner
    if t.tuner_type != "lora":
        return None
    linears = target_linears(t.target_modules)
    return Adapters(t.lora_rank, t.lora_alpha, t.lora_dropout, linears, t.use_rslora, cfg.seed)


def choose_trained(cfg: RunConfig, chunks: Sequence[PolicyModel], layer_spec: str) -> None:
    """Add adapters or freeze parameters, as the run file asks.

    Raises:
        ConfigError: the pattern fits nothing or a part of a matrix, or some chunk has nothing left to train.
    """
    adapters, pattern = adapters_of(cfg), cfg.tuner.freeze_parameters_regex
    if adapters is not None:
        require_linears(chunks[0].shape, named_linears(cfg.tuner.target_modules))
        add_adapters(chunks, adapters)
    elif pattern is not None:
        freeze(chunks, layer_spec, pattern)
    for chunk in chunks:
        if not any(parameter.requires_grad for parameter in chunk.parameters()):
            raise ConfigError(
                "some pipeline stage has nothing left to train",
                "Freeze less, choose other target_modules, or cut the model into fewer stages.",
            )
        _start_gradients_behind_a_frozen_embedding(chunk)


def freeze(chunks: Sequence[PolicyModel], layer_spec: str, pattern: str) -> None:
    """Take the parameters whose Hugging Face names fit ``pattern`` (anywhere) out of training."""
    parameters, found = local_parameters(chunks), False
    for entry in entries(weight_map(chunks[0].shape), layer_spec):
        fits = [name for name in entry.hf_names if re.search(pattern, name)]
        found = found or bool(fits)
        if fits and len(fits) < len(entry.hf_names):
            others = ", ".join(name for name in entry.hf_names if name not in fits)
            raise ConfigError(
                f"tuner.freeze_parameters_regex {pattern!r} fits {', '.join(fits)} but not {others}",
                "Megatron keeps them in one matrix: freeze all of them or none.",
            )
        if fits and entry.name in parameters:
            parameters[entry.name].requires_grad_(False)
    if not found:
        raise ConfigError(f"tuner.freeze_parameters_regex {pattern!r} fits no parameter of {chunks[0].shape.family}")


def _start_gradients_behind_a_frozen_embedding(chunk: PolicyModel) -> None:
    """Layers that are recomputed take part in the backward pass only if their input does."""
    if not chunk.pre_process or chunk.embedding.word_embeddings.weight.requires_grad:
        return

    def start(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return output.requires_grad_() if torch.is_grad_enabled() else output

    chunk.embedding.register_forward_hook(start)
