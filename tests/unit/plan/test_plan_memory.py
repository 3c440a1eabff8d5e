from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import shape_of
from grpo_hpc.plan.activations import in_flight, kept, stage_bytes
from grpo_hpc.plan.hardware import profile_names, read_hardware
from grpo_hpc.plan.make import make_plan
from grpo_hpc.plan.memory import GIB, Memory, estimate, kv_bytes_per_token
from grpo_hpc.plan.parameter_counts import held, trained
from grpo_hpc.plan.setup import Execution, Task
from grpo_hpc.plan.topology import Degrees
from tests.unit.plan.planning import quickstart, shipped

DENSE = {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "head_dim": 16,
         "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 512,
         "tie_word_embeddings": False}  # fmt: skip
MOE = DENSE | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def task(config: dict[str, object] = DENSE, **changed: object) -> Task:
    start = Task(
        shape=shape_of(config), width=2, engine_width=2, prompt=100, completion=100, average=50, completions=64,
        generation=64, steps=1, reference=False, old_logprobs=False, lora_rank=0, router_replay="disabled",
    )  # fmt: skip
    return dataclasses.replace(start, **changed)


def execution(world: int = 1, **changed: object) -> Execution:
    axes = {axis: changed.pop(axis) for axis in ("tp", "cp", "pp", "ep", "etp", "vpp") if axis in changed}
    return dataclasses.replace(Execution(Degrees(world, **axes), 8, 1, 200), **changed)


def sizes(memory: Memory, phase: str) -> dict[str, int]:
    return {term.name: term.bytes for use in memory.phases if use.phase == phase for term in use.terms}


@pytest.mark.parametrize("config", [DENSE, MOE, DENSE | {"tie_word_embeddings": True}])
@pytest.mark.parametrize(
    "axes", [{}, {"tp": 2}, {"pp": 4}, {"ep": 4}, {"tp": 2, "pp": 2, "ep": 2}, {"pp": 2, "vpp": 2}]
)
def test_all_ranks_together_hold_the_model(config: dict[str, object], axes: dict[str, int]) -> None:
    if "ep" in axes and config is not MOE:
        return
    t, e = task(config), execution(8, **axes)
    d, c = e.degrees, t.counts
    dense = sum(held(t, e, stage).dense * d.tp for stage in range(d.pp))
    expert = sum(held(t, e, stage).expert * d.ep * d.etp for stage in range(d.pp))
    whole = t.shape.layers * (c.norms + (c.router if config is MOE else 0)) + c.final_norm  # on every tp rank
    copies = c.embedding if config.get("tie_word_embeddings") and d.pp > 1 else 0
    assert dense - whole * (d.tp - 1) - copies + expert == t.parameters


def test_state_follows_the_precision_and_the_ranks() -> None:
    cpu = make_plan(quickstart()).estimate
    assert cpu is not None
    count = 134_515_008
    found = sizes(cpu.memory, "train")
    assert found["weights"] == found["gradients"] == 4 * count
    assert found["optimizer"] == 4 * count  # two fp32 moments over two ranks
    half = sizes(estimate(task(), execution(4), read_hardware("h100")), "train")
    total = task().parameters
    assert (half["weights"], half["gradients"], half["optimizer"]) == (2 * total, 4 * total, 3 * total)
    whole = sizes(estimate(task(), execution(4, distributed_optimizer=False), read_hardware("h100")), "train")
    assert whole["optimizer"] == 12 * total
    host = estimate(task(), execution(4, optimizer_on_host=1.0), read_hardware("h100"))
    assert sizes(host, "train")["optimizer"] == 0
    held = {term.name: term.bytes for term in host.host.terms}["optimizer on the host"]
    assert held == 8 * total / 4 * (4 + 4 + 8), "weights, gradients and moments in fp32, of 8 ranks"
    half = sizes(estimate(task(), execution(4, optimizer_on_host=0.5), read_hardware("h100")), "train")
    assert half["optimizer"] == total / 4 * (4 + 8) / 2


def test_reference_and_adapters() -> None:
    h = read_hardware("h100")
    assert "reference model" in sizes(estimate(task(reference=True), execution(), h), "train")
    adapters = task(reference=True, lora_rank=4)
    found = sizes(estimate(adapters, execution(), h), "train")
    assert "reference model" not in found  # the reference is the model with its adapters off
    # rank 4 on qkv (64 -> 256), proj (128 -> 64), fc1 (64 -> 192), fc2 (96 -> 64), in 8 layers
    assert found["gradients"] == 4 * trained(adapters, execution(), 0).total
    assert trained(adapters, execution(), 0).total == 8 * 4 * (64 + 256 + 128 + 64 + 64 + 192 + 96 + 64)


def test_adapters_are_those_of_the_matrices_in_the_weight_map() -> None:
    """Latent attention, dense layers, experts and shared experts."""
    config = json.loads((Path(__file__).parents[1] / "models" / "published.json").read_text())["DeepSeek-V3"]
    t = task(config, lora_rank=4)
    dense = expert = 0
    for rule in weight_map(t.shape):
        if rule.name("local").rsplit(".", 2)[-2].startswith("linear_"):
            rows, columns = rule.layout.shape()
            dense += 0 if rule.experts else len(rule.layers) * 4 * (rows + columns)
            expert += len(rule.layers) * rule.experts * 4 * (rows + columns)
    counted = trained(t, execution(), 0)
    assert (counted.dense, counted.expert) == (dense, expert)


def test_formulas_give_their_bytes() -> None:
    memory = estimate(task(MOE), execution(8, tp=2, pp=2, ep=2, sequence_parallel=True), read_hardware("h100"))
    units = (
        "parameters",
        "tokens",
        "entries",
        "process groups",
        "micro-batches in flight",
        "of one layer",
        "of experts",
    )
    for use in memory.phases:
        for term in use.terms:
            text = term.formula.split(" (8")[0].split(" (4")[0] if term.name == "activations" else term.formula
            if not any(unit in text for unit in units) or term.name == "optimizer":
                continue
            for unit in (*units, "B", ","):
                text = text.replace(f" {unit}", "") if unit != "," else text.replace(",", "")
            value = eval(text.replace(" GiB", f" * {GIB}"))
            assert value == pytest.approx(term.bytes, rel=0.01), (term, text)


def test_activations_shrink_with_what_saves_them() -> None:
    t = task()
    plain = stage_bytes(t, execution(8), 0, 200)
    # h 64, q 128, k 64, f 96, w 2: residuals and norms 4 h, qkv q+2k, rotated q+k, attention q, mlp 3 f
    by_hand = 200 * 8 * ((4 * 64 + (128 + 2 * 64) + (128 + 64) + 128 + 3 * 96) * 2 + 4 * 8)
    assert plain == by_hand
    assert stage_bytes(t, execution(8, recompute="full"), 0, 200) == 200 * 8 * 64 * 2
    assert stage_bytes(t, execution(8, recompute="full", group_layers=4), 0, 200) == 200 * 2 * 64 * 2
    block = stage_bytes(t, execution(8, recompute="full", block_layers=3), 0, 200)
    assert block == 200 * 3 * 64 * 2 + plain * 5 / 8
    again = execution(8, recompute="selective", recompute_modules=("mlp",))
    assert stage_bytes(t, again, 0, 200) == plain - 200 * 8 * 3 * 96 * 2
    two = kept(t, execution(8, tp=2, sequence_parallel=True))
    assert two.dense == pytest.approx(kept(t, execution(8)).dense / 2)
    assert kept(t, execution(8, tp=2)).dense > two.dense


def test_pipeline_stages_hold_what_is_in_flight() -> None:
    assert [in_flight(execution(8, pp=4), stage, 16) for stage in range(4)] == [4, 3, 2, 1]
    assert in_flight(execution(8, pp=4), 0, 2) == 2
    # first stage, 2 chunks: 2 * 3 warm-up chunks + 4 of the second + 1, in halves of its layers
    assert in_flight(execution(8, pp=4, vpp=2), 0, 16) == (2 * 3 + 4 + 1) / 2


def test_sleep_and_offload_make_room() -> None:
    h = read_hardware("h100")
    stay = estimate(task(), execution(memory_share=0.5), h)
    away = estimate(task(), execution(memory_share=0.5, sleep_level=2, offload_model=True, offload_optimizer=True), h)
    engine = int(0.5 * h.memory)
    state = sum(sizes(stay, "train")[name] for name in ("weights", "gradients", "optimizer"))
    phases = {use.phase: use.total for use in stay.phases}
    less = {use.phase: use.total for use in away.phases}
    assert phases["rollout"] - less["rollout"] == state
    held = sizes(stay, "rollout")
    assert sum(held[name] for name in ("vLLM weights", "vLLM activations", "KV cache")) == engine
    assert held["CUDA graphs"] > 0, "they come on top of vLLM's share"
    kept = engine - held["vLLM activations"] + held["CUDA graphs"]  # activations are given back to torch
    assert phases["train"] - less["train"] == pytest.approx(kept - 0.5 * GIB, abs=2)
    level_1 = estimate(task(), execution(memory_share=0.5, sleep_level=1), h)
    assert "sleeping vLLM weights" in {term.name for term in level_1.host.terms}


def test_kv_cache_of_one_token() -> None:
    assert kv_bytes_per_token(task(), execution()) == 2 * 8 * 4 * 16 * 2
    assert kv_bytes_per_token(task(), execution(8, engine_tp=8)) == 2 * 8 * 1 * 16 * 2  # vLLM copies heads


@pytest.mark.parametrize("name", profile_names())
def test_profiles_are_complete(name: str) -> None:
    hardware = read_hardware(name)
    assert 0.3 < hardware.matmul_efficiency <= 1
    assert hardware.source


def test_the_measured_run_of_a_4b_model() -> None:
    """Qwen3-4B's shape on an H200, micro-batches of 4,096 tokens, vLLM share 0.2: 119.2 GiB reserved at the peak."""
    config = {"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
              "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
              "tie_word_embeddings": True, "max_position_embeddings": 40960}  # fmt: skip
    t = task(config, prompt=256, completion=768, average=768, completions=128, generation=128)
    memory = estimate(t, execution(micro_batch=4, micro_tokens=4096, memory_share=0.2), read_hardware("h200"))
    assert memory.peak.phase == "train"
    assert memory.peak.total / GIB == pytest.approx(119.2, rel=0.05)


def test_less_layers_on_the_ends() -> None:
    cfg = shipped("qwen3_235b_a22b")
    estimate_ = make_plan(cfg).estimate
    assert estimate_ is not None
    layers = estimate_.execution.stage_layers(94)
    assert [layer for stage in layers for layer in stage] == list(range(94))
    assert len({len(stage) for stage in layers[1:-1]}) == 1
