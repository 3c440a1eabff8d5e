from __future__ import annotations

import dataclasses

import pytest

from grpo_hpc.plan.hardware import read_hardware
from grpo_hpc.plan.rates import Times
from grpo_hpc.plan.time import estimate
from tests.unit.plan.test_plan_memory import MOE, execution, task

H100 = read_hardware("h100")


def seconds(times: Times) -> dict[tuple[str, str], float]:
    return {(phase.name, part.name): part.seconds for phase in times.phases for part in phase.parts}


def test_a_dense_step_by_hand() -> None:
    """Two layers of work by hand: 64 sequences of 150 tokens on one GPU, forward and backward."""
    t, e = task(), execution(micro_batch=64, micro_tokens=64 * 200)
    hw = dataclasses.replace(H100, launch_us=1e-6)
    layer = 64 * (128 + 2 * 64) + 128 * 64 + 3 * 64 * 96 + 2 * 64 + 2 * 16  # weights and norms
    matrices = 2 * ((8 * layer + 64) * 150 + 64 * 1000 * 50)
    attention = 2 * 8 * 128 * 150**2
    rate = hw.bf16_tflops * 1e12
    tensor = 3 * 64 * (matrices / (rate * hw.matmul_efficiency) + attention / (rate * hw.attention_efficiency))
    norms = 3 * 64 * 150 * 8 * 64 * 2 * 24 / (hw.hbm_gb_per_s * 1e9)
    assert seconds(estimate(t, e, hw))["train", "compute"] == pytest.approx(tensor + norms, rel=1e-6)


def test_small_work_is_bound_by_the_host() -> None:
    train = next(phase for phase in estimate(task(), execution(), H100).phases if phase.name == "train")
    assert train.bound == "host"


def test_what_makes_a_step_longer_and_shorter() -> None:
    big = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 32}
    config = {**MOE, **big, "moe_intermediate_size": 4096, "num_attention_heads": 16, "head_dim": 128}
    t = task(config, prompt=1000, completion=1000, average=500)
    base = estimate(t, execution(8, ep=8, micro_tokens=8000), H100)
    again = estimate(t, execution(8, ep=8, micro_tokens=8000, recompute="full"), H100)
    assert again.cycle > base.cycle
    assert again.mfu < base.mfu
    parts = seconds(estimate(t, execution(8, pp=4, micro_tokens=2000, micro_batch=1), H100))
    several = seconds(estimate(t, execution(8, pp=4, vpp=2, micro_tokens=2000, micro_batch=1), H100))
    assert several["train", "pipeline bubble"] == pytest.approx(parts["train", "pipeline bubble"] / 2, rel=0.05)
    across = seconds(estimate(t, execution(16, ep=16 // 2, micro_tokens=8000), H100))
    wide = estimate(t, dataclasses.replace(execution(16, ep=8, micro_tokens=8000), per_node=4), H100)
    assert seconds(wide)["train", "expert parallel"] > across["train", "expert parallel"]
    assert ("logprob", "compute") not in seconds(base)
    assert ("logprob", "compute") in seconds(estimate(dataclasses.replace(t, reference=True), execution(8), H100))


def test_rollout_follows_bytes_and_the_tail() -> None:
    t = task(prompt=100, completion=1000, average=500)
    short = seconds(estimate(dataclasses.replace(t, average=1000), execution(), H100))
    long = seconds(estimate(t, execution(), H100))
    assert short["rollout", "tail"] == 0
    assert long["rollout", "tail"] > 0
    assert long["rollout", "decode"] < short["rollout", "decode"]
    slow = seconds(estimate(t, execution(eager=True), H100))
    assert slow["rollout", "decode"] > long["rollout", "decode"]


def test_an_engine_over_nodes_pays_for_every_all_reduce_by_hand() -> None:
    t = task(prompt=100, completion=1000, average=1000)  # equal lengths: no tail
    node = execution(2, engine_tp=2, memory_share=0.5)
    apart = dataclasses.replace(node, per_node=1)
    near, far = (seconds(estimate(t, each, H100))["rollout", "decode"] for each in (node, apart))
    size = 2 * 1 / 2 * t.generation * t.shape.hidden * t.engine_width
    each = 65e-6 - 20e-6 + size / (H100.nic_gb_per_s * 1e9) - size / (H100.nvlink_gb_per_s * 1e9)
    assert far - near == pytest.approx(1000 * 2 * t.shape.layers * each, rel=1e-6)
    alone = seconds(estimate(t, dataclasses.replace(node, engine_tp=1), H100))["rollout", "decode"]
    assert near - alone > 0.9 * 1000 * 2 * t.shape.layers * 20e-6  # a small model gains nothing by being cut


def test_rates_add_up() -> None:
    times = estimate(task(), execution(8), H100)
    assert times.cycle == pytest.approx(sum(seconds(times).values()))
    assert times.rate == pytest.approx(64 * 150 / times.cycle / 8)
