"""The parallel layouts that are proven equal to one rank, each on four processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODELS = {"llama": ("llama", True), "qwen3": ("qwen3", False)}
"""Name -> family and whether the embedding is tied."""


@dataclass(frozen=True)
class Case:
    """One layout with everything else that must not change a gradient.

    Attributes:
        model: of ``MODELS``.
        keys: of the run file.
    """

    name: str
    model: str
    keys: dict[str, Any]

    def __str__(self) -> str:
        return self.name


ONE = {"micro_batch_size": 1}
TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
SHARDED = {"use_distributed_optimizer": True}
BUDGET = {"max_tokens_per_micro_batch": 40, "micro_batch_size": None, "vllm_max_model_len": 32}

_CASES = [
    Case("dp4", "llama", ONE),
    Case("dp4-sharded", "qwen3", SHARDED | ONE),
    Case("dp4-budget", "qwen3", BUDGET),
    Case("tp2-dp2", "llama", TP2),
    Case("tp2-dp2-sharded", "qwen3", TP2 | SHARDED),
    Case("pp2-dp2", "llama", PP2),
    Case("pp2-dp2-sharded", "qwen3", PP2 | SHARDED),
    Case("pp2-dp2-budget", "llama", PP2 | BUDGET),
    Case("pp4", "llama", {"pipeline_model_parallel_size": 4}),
    Case("tp2-pp2", "llama", TP2 | PP2),
    Case("cp2-dp2", "qwen3", CP2),
    Case("cp2-dp2-sharded", "llama", CP2 | SHARDED),
    Case("cp2-dp2-budget", "llama", CP2 | BUDGET),
    Case("cp2-tp2", "qwen3", CP2 | TP2),
    Case("cp2-pp2", "llama", CP2 | PP2),
    Case("cp4", "qwen3", {"context_parallel_size": 4}),
]
LAYOUTS = {case.name: case for case in _CASES}
