from __future__ import annotations

import dataclasses

import pytest

from grpo_hpc.plan.hardware import read_hardware
from grpo_hpc.plan.memory import estimate
from grpo_hpc.plan.sample_traffic import held_bytes, sample_bytes, sample_exchange, sample_memory
from tests.unit.plan.test_plan_memory import MOE, execution, task

H100 = read_hardware("h100")


def test_bytes_of_a_completion() -> None:
    """150 tokens, 50 of them sampled; 8 layers of 8 experts, 2 for each token."""
    t = task(MOE)
    assert sample_bytes(t) == held_bytes(t) == 150 * 5 + 50 * 8 + 8
    old_and_reference = dataclasses.replace(t, old_logprobs=True, reference=True)
    assert held_bytes(old_and_reference) - sample_bytes(old_and_reference) == 2 * 50 * 4
    from_engine = dataclasses.replace(t, router_replay="R3")
    assert sample_bytes(from_engine) - sample_bytes(t) == 149 * 8 * 2
    own = dataclasses.replace(t, router_replay="R2")
    assert sample_bytes(own) == sample_bytes(t) and held_bytes(own) == sample_bytes(from_engine)


def test_a_rank_holds_its_share_and_a_summary_of_everything() -> None:
    t = task(generation=64)
    size = sample_bytes(t)
    assert sample_memory(t, execution(8))[0] == 8 * (2 * 8 * size + 64 * 136) + 8 * 2 * 8 * size
    shared = sample_memory(t, execution(8, tp=2, engine_tp=4))  # 4 replicas of the model, 2 engines
    assert shared[0] == 8 * (2 * 16 * size + 64 * 136) + 2 * 2 * 32 * size
    on_host = {term.name: term.bytes for term in estimate(t, execution(8), H100).host.terms}
    assert on_host["completions"] == sample_memory(t, execution(8))[0]


def test_what_a_large_rollout_takes() -> None:
    """2,048 completions of 32k tokens on 256 GPUs: each rank holds 16 B or less for a token that it trains."""
    t = task(prompt=1000, completion=32_000, average=31_000, completions=2048, generation=2048)
    e = execution(256, tp=4, pp=2, engine_tp=8)
    assert held_bytes(t) / t.usual < 16
    assert sample_memory(t, e)[0] / 8 < 2 * (2048 / 32) * 32_000 * 16 * 2
    told, moved = sample_exchange(t, e, H100)
    assert told.seconds == pytest.approx(2048 * 136 / 1e9 + 255e-4)
    share = 64 * sample_bytes(t) / 1e9  # to each of 32 replicas, then in three rounds to its other 7 ranks
    assert moved.seconds == pytest.approx(share * (31 / 32 + 3) + 255e-4)


def test_one_rank_sends_nothing() -> None:
    assert sample_exchange(task(), execution(), H100) == []
