from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from grpo_hpc.config import load_run
from grpo_hpc.errors import GrpoHpcError, PlanError
from grpo_hpc.plan.layout_rules import broken, legal
from grpo_hpc.plan.make import make_plan
from grpo_hpc.plan.search import changed_run, search_run
from grpo_hpc.plan.show_search import show_results
from tests.unit.plan.planning import CONFIGS, quickstart, shipped

LEARNING = ("batch", "algorithm", "rewards", "optimizer", "data")


def test_the_best_layouts_fit_and_are_sorted_and_beat_the_given_one() -> None:
    cfg = shipped("qwen3_8b")
    (result,) = search_run(cfg, None, None)
    rates = [found.times.rate for found in result.best if found.times]
    assert len(rates) == 10
    assert rates == sorted(rates, reverse=True)
    assert all(found.verdict == "fits" for found in result.best)
    given_ = make_plan(cfg).estimate
    assert given_ is not None and given_.times is not None
    assert rates[0] >= given_.times.rate
    assert sum(result.lost.values()) > 20


def test_what_a_search_writes_is_what_it_promised() -> None:
    """Each shown layout, written into the run file, plans to the very same figures, and none learns differently."""
    for name in ("qwen3_8b", "qwen3_30b_a3b"):
        file = CONFIGS / f"{name}.yaml"
        before = load_run(file)
        (result,) = search_run(before, None, None)
        for found in result.best:
            cfg = changed_run(before, found.execution)
            estimate = make_plan(cfg).estimate
            assert estimate is not None and estimate.times is not None and found.times is not None
            assert estimate.times.rate == pytest.approx(found.times.rate, rel=1e-6)
            assert estimate.memory.peak.total == found.memory.peak.total
            for section in LEARNING:
                now, then = getattr(cfg, section).model_dump(), getattr(before, section).model_dump()
                for key in ("micro_batch_size", "max_tokens_per_micro_batch", "optimizer_cpu_offload"):
                    now.pop(key, None), then.pop(key, None)
                assert now == then


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    (result,) = search_run(shipped("qwen3_235b_a22b", "gpu=l40s"), None, [1])
    assert result.best == ()
    assert any("fit" in reason for reason in result.lost)
    out = io.StringIO()
    show_results([result], Console(file=out, width=80))
    assert "None of" in out.getvalue()
    with pytest.raises(PlanError, match="CPU"):
        search_run(quickstart(), None, None)


def test_how_many_nodes() -> None:
    results = search_run(shipped("qwen3_32b"), None, range(1, 5))
    assert [result.nodes for result in results] == [1, 2, 3, 4]
    out = io.StringIO()
    show_results(results, Console(file=out, width=100))
    assert "the fewest" in " ".join(out.getvalue().split())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["qwen3_8b", "qwen3_30b_a3b", "qwen3_235b_a22b", "qwen3_8b_lora", "qwen2.5_vl_3b"]),
    st.dictionaries(
        st.sampled_from(
            ["tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "nodes",
             "expert_model_parallel_size", "expert_tensor_parallel_size", "nproc_per_node", "num_generations",
             "virtual_pipeline_model_parallel_size", "decoder_first_pipeline_num_layers", "global_batch_size",
             "decoder_last_pipeline_num_layers", "vllm_tensor_parallel_size", "micro_batch_size", "max_length",
             "max_completion_length", "vllm_max_model_len", "recompute_num_layers", "steps_per_generation"]
        ),
        st.integers(0, 300), max_size=5,
    ),
    st.dictionaries(
        st.sampled_from(["vllm_mode", "sleep_level", "recompute_granularity", "gpu", "sequence_parallel", "dtype",
                         "vllm_gpu_memory_utilization", "offload_model", "beta", "tuner_type", "device"]),
        st.sampled_from(["server", "0", "1", "2", "full", "selective", "true", "false", "h200", "0.5", "lora", "null",
                         "float32", "cpu", "nonsense", "nan", "-1"]), max_size=3,
    ),
)  # fmt: skip
def test_any_run_file_gives_a_plan_or_one_readable_error(
    name: str, numbers: dict[str, int], words: dict[str, str]
) -> None:
    changes = [f"{key}={value}" for key, value in (numbers | words).items()]
    try:
        plan = make_plan(load_run(CONFIGS / f"{name}.yaml", changes))
        plan.to_dict()
    except GrpoHpcError as error:
        assert error.message


def test_all_broken_rules_are_shown_together() -> None:
    from tests.unit.plan.test_plan_memory import execution, task

    found = broken(task().shape, execution(30, tp=3, pp=5, ep=2, engine_tp=6))
    assert {rule.key.split(".")[1].split("_parallel")[0] for rule in found} == {
        "tensor_model", "pipeline_model", "expert_model", "vllm_tensor"
    }  # fmt: skip
    assert "8 query heads / 3, remainder 2" in found[0].text


@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 4))
def test_nearest_values_keep_their_rule(pp: int, tp: int, vpp: int) -> None:
    import dataclasses

    from tests.unit.plan.test_plan_memory import execution, task

    shape = task().shape
    asked = execution(tp * pp, tp=tp, pp=pp, vpp=vpp)
    for rule in broken(shape, asked):
        axis = {"tensor": "tp", "pipeline": "pp", "virtual": "vpp", "context": "cp"}[
            rule.key.split(".")[1].split("_")[0]
        ]
        for size in rule.nearest:
            mended = dataclasses.replace(asked, degrees=dataclasses.replace(asked.degrees, **{axis: size}))
            assert rule.key not in [other.key for other in broken(shape, mended)], (rule, size)
    assert legal(shape, asked) == (not broken(shape, asked))
