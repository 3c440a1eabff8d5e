"""Rules between the keys that cut the model, recompute, overlap and place the optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.config.rules import meaningless_but_given
from grpo_hpc.errors import ConfigError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
TWO_STAGES = ("nproc_per_node=4", "pipeline_model_parallel_size=2")
PRECISE = ("device=cuda", "dtype=bfloat16", "vllm_kv_cache_gib=null", "use_precision_aware_optimizer=true")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sequence_parallel=true"], "needs parallel.tensor_model_parallel_size of 2 or more"),
        (["overlap_param_gather=true"], "needs parallel.overlap_grad_reduce"),
        (
            ["overlap_grad_reduce=true", "overlap_param_gather=true", "use_distributed_optimizer=false"],
            "needs parallel.use_distributed_optimizer",
        ),
        (["nproc_per_node=2", "expert_tensor_parallel_size=2"], "must be 1 or parallel.tensor_model_parallel_size = 1"),
        (["ddp_bucket_size=1000"], "only with parallel.overlap_grad_reduce"),
        (["recompute_method=block"], "only with parallel.recompute_granularity: full"),
        (["recompute_granularity=selective", "recompute_num_layers=2"], "recompute_granularity: full"),
        (["recompute_granularity=full", "recompute_modules=[mlp]"], "recompute_granularity: selective"),
        (["virtual_pipeline_model_parallel_size=2"], "needs parallel.pipeline_model_parallel_size of 2 or more"),
        (
            [*TWO_STAGES, "virtual_pipeline_model_parallel_size=2", "global_batch_size=18", "num_generations=3"],
            "18 / (2 * 2), remainder 2; next global_batch_size that fits: 20",
        ),
        (["use_precision_aware_optimizer=true"], "needs resources.device: cuda"),
        (["optimizer_cpu_offload=true"], "needs resources.device: cuda"),
        (["optimizer_cpu_offload=true"], "needs optimizer.use_precision_aware_optimizer: true"),
        (["exp_avg_dtype=bfloat16"], "only with optimizer.use_precision_aware_optimizer"),
        (["optimizer_offload_fraction=0.5"], "only with optimizer.optimizer_cpu_offload"),
        (["max_tokens_per_micro_batch=512", "micro_batch_size=4"], "give one of them"),
    ],
)
def test_each_rule_says_what_it_needs(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(QUICKSTART, overrides)
    assert expected in str(caught.value)


def test_a_layout_with_everything_that_fits_together_is_accepted() -> None:
    keys = ["tensor_model_parallel_size=2", "sequence_parallel=true", "recompute_granularity=full"]
    keys += ["overlap_grad_reduce=true", "overlap_param_gather=true", "nproc_per_node=4"]
    cfg = load_run(QUICKSTART, keys)
    assert cfg.parallel.recompute_method == "uniform" and not meaningless_but_given(cfg)
