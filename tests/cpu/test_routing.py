"""Experts: balance losses and replayed routing equal those of one rank under every axis, and of transformers."""

from __future__ import annotations

import ast

import pytest
from layouts import CP2, EP2, ETP2, FULL, SP, TP2, VPP2
from ranks import run_ranks
from runfiles import write_run
from safetensors import safe_open
from safetensors.torch import load_file

MOE = {"moe_aux_loss_coeff": 0.3, "moe_z_loss_coeff": 0.03, "router_replay_mode": "R2"}
LAYOUTS = {
    "ep2-etp2-tp2-sp-full": EP2 | ETP2 | TP2 | SP | {"recompute_granularity": "full"},
    "ep2-vpp2-pp2-full": EP2 | VPP2 | FULL,
    "ep2-cp2-moe": EP2 | CP2 | {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
}


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    """Tensors and numbers by layout; "one" is a single rank."""
    folder, model = tmp_path_factory.mktemp("routing"), tiny("qwen3_moe", False)
    keys = MOE | {"use_distributed_optimizer": False}
    run_ranks("routing", 1, folder, write_run(folder, model, name="one", **keys))
    runs = [write_run(folder, model, name=n, nproc_per_node=4, **(keys | own)) for n, own in LAYOUTS.items()]
    run_ranks("routing", 4, folder, *runs)
    return {name: read(folder / f"{name}.safetensors") for name in ("one", *LAYOUTS)}


def read(path):
    with safe_open(path, "pt") as file:
        return load_file(path), {key: ast.literal_eval(value) for key, value in file.metadata().items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_rank(layout, results):
    (want, want_numbers), (got, numbers) = results["one"], results[layout]
    assert numbers == pytest.approx(want_numbers, rel=1e-5)
    assert got.keys() == want.keys()
    for name, value in got.items():
        if name.startswith("routing/"):
            assert value.equal(want[name]), name
        elif not name.startswith("free/"):  # a router's tie may break in another way there
            assert (value - want[name]).norm() <= 1e-5 * want[name].norm(), name


def test_replay_follows_what_was_written_down(results):
    """When routers have moved, as many tokens go to each expert as before, and freely routed ones go elsewhere."""
    tensors, numbers = results["one"]
    for name in ("moe/load_max_over_mean", "moe/load_entropy", "moe/max_violation"):
        assert numbers[f"moved/{name}"] == pytest.approx(numbers[f"same/{name}"])
    assert numbers["moved/moe/replay_changed"] > 0.1
    router = "model.layers.1.mlp.gate.weight"
    free, moved = tensors[f"free/{router}"], tensors[f"moved/{router}"]
    assert (free - moved).norm() > 0.05 * moved.norm()


def test_load_is_counted_as_the_routing_says(results):
    tensors, numbers = results["one"]
    rows = [value.long() for name, value in tensors.items() if name.startswith("routing/")]
    layers, experts, topk = 4, 4, 2
    worst = []
    for layer in range(layers):
        counts = [0] * experts
        for row in rows:
            for expert in row[:, layer * topk : (layer + 1) * topk].flatten().tolist():
                counts[expert] += 1
        worst.append(max(counts) * experts / sum(counts) - 1)
        assert numbers[f"same/moe/layer_{layer:02d}/max_violation"] == pytest.approx(worst[-1])
    assert numbers["same/moe/max_violation"] == pytest.approx(max(worst))
    assert numbers["same/moe/load_max_over_mean"] == pytest.approx(1 + sum(worst) / layers)
