"""Hold the planner against what others published: step times, and layouts that ran out of memory.

    python tools/plan_published.py > docs/benchmarks/2026-11-22_planner_published.md

Nothing in the planner is fitted to these rows. What a source does not say is an assumption and is named. Our own runs
are another table, made by tools/plan_measured.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_hpc.models.families.read_shape import read_shape, shape_of
from grpo_hpc.models.shape import ModelShape
from grpo_hpc.plan.hardware import read_hardware
from grpo_hpc.plan.make import Estimate, estimate_of
from grpo_hpc.plan.memory import GIB
from grpo_hpc.plan.setup import Execution, Task
from grpo_hpc.plan.topology import Degrees

CONFIGS = Path(__file__).parents[1] / "configs" / "models"
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
    "tie_word_embeddings": False, "max_position_embeddings": 163840, "n_group": 8, "topk_group": 4,
    "routed_scaling_factor": 2.5, "norm_topk_prob": True, "scoring_func": "sigmoid", "rope_theta": 10000,
    "topk_method": "noaux_tc",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One published run: the estimate's input and what was seen."""

    name: str
    source: str
    gpu: str
    task: Task
    execution: Execution
    step: float | None = None
    ran_out: bool | None = None

    def estimate(self) -> Estimate:
        return estimate_of(self.task, self.execution, read_hardware(self.gpu))


def _task(shape: ModelShape, completions: int, prompt: int, completion: int, average: int, reference: bool) -> Task:
    return Task(shape, 2, 2, prompt, completion, average, completions, completions, 1, reference, True, 0, "disabled")


def rows() -> list[Row]:
    """What was published, in the order of ``docs``."""
    moe, large = read_shape(CONFIGS / "Qwen3-30B-A3B.json"), read_shape(CONFIGS / "Qwen3-235B-A22B.json")
    deepseek, dense = shape_of(DEEPSEEK_V3), read_shape(CONFIGS / "Qwen2.5-7B-Instruct.json")
    nemo = "NeMo-RL v0.6 performance summary"
    away = {"sleep_level": 2, "offload_model": True, "offload_optimizer": True, "memory_share": 0.6}
    small = _task(moe, 2048, 256, 3840, 2947, True)
    verl = _task(dense, 256, 1024, 8192, 2048, True)
    tp2 = Execution(Degrees(8, tp=2), 8, 0, 10240, sequence_parallel=True, engine_tp=1, memory_share=0.6)
    cp2 = Execution(Degrees(8, tp=2, cp=2), 8, 0, 10240, sequence_parallel=True, engine_tp=1, memory_share=0.6)
    return [
        Row("Qwen3-30B-A3B, 32 H100, EP8", nemo, "h100", small,
            Execution(Degrees(32, ep=8), 8, 1, 4096, recompute="full", engine_tp=2, **away), step=192),
        Row("Qwen3-30B-A3B, 16 GB200, EP8", nemo, "gb200", small,
            Execution(Degrees(16, ep=8), 4, 1, 4096, recompute="full", engine_tp=2, **away), step=221),
        Row("Qwen3-235B-A22B, 128 H100, TP2 CP2 EP16 PP8", nemo, "h100", _task(large, 512, 256, 7936, 5442, True),
            Execution(Degrees(128, tp=2, cp=2, pp=8, ep=16), 8, 1, 8192, sequence_parallel=True, recompute="full",
                      first_layers=11, last_layers=11, engine_tp=16, **away), step=395),
        Row("DeepSeek-V3, 256 H100, EP16 PP16", nemo, "h100", _task(deepseek, 512, 256, 1280, 445, True),
            Execution(Degrees(256, pp=16, ep=16), 8, 1, 1536, recompute="full", first_layers=3, last_layers=2,
                      engine_tp=32, **away), step=134),
        Row("Qwen2.5-7B, 8 H100, TP2, nothing offloaded", "verl practice tables", "h100", verl, tp2, ran_out=True),
        Row("Qwen2.5-7B, 8 H100, TP2 CP2, nothing offloaded", "verl practice tables", "h100", verl, cp2, ran_out=True),
        Row("Qwen2.5-7B, 8 H100, TP2, offloaded", "verl practice tables", "h100", verl,
            Execution(Degrees(8, tp=2), 8, 0, 10240, sequence_parallel=True, engine_tp=1, **away), ran_out=False),
    ]  # fmt: skip


def main() -> None:
    """Print the page."""
    print("# The planner and published runs, 2026-11-22\n")
    print("Made by `python tools/plan_published.py`. The planner is not fitted to these rows.\n")
    print("| run | source | seconds of a step | estimate | error | memory | estimate | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows():
        found = row.estimate()
        assert found.times is not None
        peak = found.memory.peak.total / GIB
        step = "- | - | -"
        if row.step:
            step = f"{row.step:g} | {found.times.step:.0f} | {found.times.step / row.step - 1:+.0%}"
        seen = "ran out" if row.ran_out else "ran"
        print(f"| {row.name} | {row.source} | {step} | {seen} | {peak:.0f} GiB | {found.verdict} |")
    print(_TEXT)


_TEXT = """
Assumptions where the source is silent: prompts of 256 tokens in the NeMo-RL rows, whose lengths count all tokens;
a reference model, and vLLM asleep with the training state offloaded while it samples, at 60 % of the card; full
recomputation; in the verl rows 60 % of the card for vLLM and 10,240 tokens in a micro-batch.

The published peaks of prime-rl (performance tables for 8 H200) are not in the table: it trains with FSDP2, which cuts
parameters and gradients over all ranks; no layout of Megatron-Core does that, so there is nothing to compare.

Where the error comes from: the planner takes lengths as evenly spread between nothing and twice the average, knows
neither how a source balances its batches nor its rewards, and lets no phase wait for another node.
"""

if __name__ == "__main__":
    main()
