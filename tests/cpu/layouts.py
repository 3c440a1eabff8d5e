"""The parallel layouts that are proven equal to one rank, each on four processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODELS = {
    "llama": ("llama", True),
    "qwen3": ("qwen3", False),
    "moe": ("qwen3_moe", False),
    "mixtral": ("mixtral", False),
    "deepseek": ("deepseek_v3", False),
}
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
EP2, EP4 = {"expert_model_parallel_size": 2}, {"expert_model_parallel_size": 4}
ETP2 = {"expert_tensor_parallel_size": 2}
FULL = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp", "layernorm"]}

_CASES = [
    Case("dp4-overlap", "qwen3", OVERLAP | ONE),
    Case("dp4-budget-full", "llama", BUDGET | {"recompute_granularity": "full"}),
    Case("tp2-dp2-overlap", "qwen3", TP2 | OVERLAP),
    Case("tp2-sp-dp2-selective", "qwen3", TP2 | SP | SELECTIVE),
    Case("pp2-dp2-sharded", "qwen3", PP2 | SHARDED),
    Case("pp2-dp2-budget-overlap", "llama", PP2 | BUDGET | OVERLAP),
    Case("pp2-uneven-dp2", "qwen3", PP2 | {"decoder_last_pipeline_num_layers": 1}),
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
    Case("ep4-dp4", "moe", EP4 | ONE),
    Case("ep2-dp4-overlap-budget", "mixtral", EP2 | OVERLAP | BUDGET),
    Case("ep2-etp2-tp2-sp-dp2", "moe", EP2 | ETP2 | TP2 | SP),
    Case("ep2-tp2-sp-dp2-sharded", "moe", EP2 | TP2 | SP | SHARDED),
    Case("ep2-pp2-dp2", "mixtral", EP2 | PP2),
    Case("ep2-vpp2-pp2-full", "moe", EP2 | VPP2 | FULL),
    Case("ep2-cp2-dp2-selective", "moe", EP2 | CP2 | SELECTIVE | {"recompute_modules": ["moe_act"]}),
    Case("etp2-tp2-sp-dp2", "mixtral", ETP2 | TP2 | SP),
    Case("tp2-sp-dp2-overlap", "moe", TP2 | SP | OVERLAP),
    Case("latent-ep2-tp2-sp-dp2-sharded", "deepseek", EP2 | TP2 | SP | SHARDED),
    Case("latent-ep2-pp2-full", "deepseek", EP2 | PP2 | FULL),
    Case("latent-cp2-tp2-sp", "deepseek", CP2 | TP2 | SP),
]
LAYOUTS = {case.name: case for case in _CASES}

RESUMED = ("pp2-dp2-sharded", "vpp2-pp2-dp2", "ep2-dp4-overlap-budget", "ep2-etp2-tp2-sp-dp2")
"""Layouts under which a restored run is proven to go on to the bit."""


def markdown() -> str:
    """The layouts as a page of documentation."""
    rows = []
    for case in _CASES:
        keys = ", ".join(f"`{key}={_text(value)}`" for key, value in case.keys.items() if value is not None)
        rows.append(f"| {case.name} | {MODELS[case.model][0]} | {keys or '-'} | {'yes' * (case.name in RESUMED)} |")
    return "\n".join([_HEAD, *rows, ""])


def _text(value: Any) -> str:
    return str(value).replace("'", "").lower() if isinstance(value, bool | list) else str(value)


_HEAD = """# Layouts that are proven

Each row is one optimizer step on four CPU processes in fp32: every metric of the step and every gradient, as Hugging
Face tensors, against one process (relative error at most 1e-5), and every updated weight (1e-4: Adam's first step
magnifies rounding). Where parameters are gathered during the next forward pass, so is every gradient of a second step.
`tests/cpu/test_layouts.py` runs them one after another in the same processes. In the rows with *resumed*,
`tests/cpu/test_checkpoint.py` saves in the middle, restores into a fresh policy of the same layout, and both go
on equal to the bit; [checkpoints.md](checkpoints.md#other-layouts) says when a run may go on in another one.
What a row does not name has its default; the ranks that remain are data-parallel. Models with experts (qwen3_moe,
mixtral, deepseek_v3) have a balance loss and a z-loss, and the metrics of their load are compared as well; the biases
of deepseek_v3's routers move. It has latent attention. At the end of each row the model is exported to the first rank
alone, and the bytes that every rank receives are counted.

This page is generated: `PYTHONPATH=tests/cpu python -m layouts > docs/layouts.md`.

| layout | model | keys of the run file | resumed |
|---|---|---|---|"""


if __name__ == "__main__":
    print(markdown(), end="")
