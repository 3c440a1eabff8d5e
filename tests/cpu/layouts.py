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
SP = {"sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
VPP2 = PP2 | {"virtual_pipeline_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}
SHARDED = {"use_distributed_optimizer": True}
OVERLAP = SHARDED | {"overlap_grad_reduce": True, "overlap_param_gather": True, "ddp_bucket_size": 50000}
BUDGET = {"max_tokens_per_micro_batch": 40, "micro_batch_size": None, "vllm_max_model_len": 32}
FULL = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp", "layernorm"]}

_CASES = [
    Case("dp4-overlap", "qwen3", OVERLAP | ONE),
    Case("dp4-budget-full", "llama", BUDGET | {"recompute_granularity": "full"}),
    Case("tp2-dp2-overlap", "qwen3", TP2 | OVERLAP),
    Case("tp2-sp-dp2-selective", "qwen3", TP2 | SP | SELECTIVE),
    Case("pp2-dp2-sharded", "qwen3", PP2 | SHARDED),
    Case("pp2-dp2-budget-overlap", "llama", PP2 | BUDGET | OVERLAP),
    Case("pp4", "llama", {"pipeline_model_parallel_size": 4}),
    Case("vpp2-pp2-dp2", "llama", VPP2),
    Case("vpp2-pp2-dp2-overlap-budget", "qwen3", VPP2 | OVERLAP | BUDGET),
    Case("vpp2-pp2-tp2-sp-full", "llama", VPP2 | TP2 | SP | FULL),
    Case("tp2-pp2", "llama", TP2 | PP2),
    Case("tp2-sp-pp2-sharded", "qwen3", TP2 | SP | PP2 | SHARDED),
    Case("cp2-dp2", "qwen3", CP2),
    Case("cp2-dp2-overlap-budget", "llama", CP2 | BUDGET | OVERLAP),
    Case("cp2-tp2", "llama", CP2 | TP2),
    Case("cp2-tp2-sp-selective", "qwen3", CP2 | TP2 | SP | SELECTIVE),
    Case("cp2-pp2", "llama", CP2 | PP2),
    Case("cp2-vpp2-pp2-full", "qwen3", CP2 | VPP2 | FULL),
    Case("cp4", "qwen3", {"context_parallel_size": 4}),
]
LAYOUTS = {case.name: case for case in _CASES}
