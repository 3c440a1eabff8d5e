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
BIAS = {"moe_router_bias_update_rate": 0.01, "lr": 1e-6}
"""Weights that hardly move: where rounding has a say in them, so has it in the choice of experts."""
LAYOUTS = {
    "ep2-etp2-tp2-sp-full": EP2 | ETP2 | TP2 | SP | {"recompute_granularity": "full"},
    "ep2-vpp2-pp2-full": EP2 | VPP2 | FULL,
    "ep2-cp2-moe": EP2 | CP2 | {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
}
BIASED = {"bias-ep2-tp2-sp": EP2 | TP2 | SP | {"micro_batch_size": 1}}
INTERRUPTED = {"steps_per_generation": 2, "num_iterations": 2, "lr": 1e-2, "global_batch_size": 8}


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    """Tensors and numbers by layout; "one" and "bias" are a single rank."""
    folder = tmp_path_factory.mktemp("routing")

    def run(name, **own):
        family, keys = ("deepseek_v3", BIAS) if name.startswith("bias") else ("qwen3_moe", MOE)
        return write_run(folder, tiny(family, False), name=name, use_distributed_optimizer=False, **(keys | own))

    run_ranks("routing", 1, folder, run("one"), run("bias"), run("interrupted", **INTERRUPTED))
    several = (LAYOUTS | BIASED).items()
    run_ranks("routing", 4, folder, *(run(name, nproc_per_node=4, **own) for name, own in several))
    return {name: read(folder / f"{name}.safetensors") for name in ("one", "bias", "interrupted", *LAYOUTS, *BIASED)}


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


@pytest.mark.parametrize("layout", BIASED)
def test_biases_move_in_every_layout_as_on_one_rank(layout, results):
    """There they are compared with counts by hand (in the worker), and restored from a checkpoint."""
    (want, want_numbers), (got, numbers) = results["bias"], results[layout]
    assert numbers == pytest.approx(want_numbers, rel=1e-4, abs=1e-6)
    assert got.keys() == want.keys()
    assert all((value - want[name]).abs().max() < 1e-6 for name, value in got.items())


def test_replay_follows_what_was_written_down(results):
    """When routers have moved, as many tokens go to each expert as before, and freely routed ones go elsewhere."""
    tensors, numbers = results["one"]
    for name in ("moe/load_max_over_mean", "moe/load_entropy", "moe/max_violation"):
        assert numbers[f"moved/{name}"] == pytest.approx(numbers[f"same/{name}"])
    assert numbers["moved/moe/replay_changed"] > 0.1
    router = "model.layers.1.mlp.gate.weight"
    free, moved = tensors[f"free/{router}"], tensors[f"moved/{router}"]
    assert (free - moved).norm() > 0.05 * moved.norm()


def test_a_rollout_that_is_interrupted_keeps_its_routing(results):
    """A restored policy goes on to the bit (in the worker), in steps where routers would choose otherwise."""
    _, changed = results["interrupted"]
    assert len(changed) == 4 and changed["0"] == 0
    assert all(changed[step] > 0.01 for step in ("1", "2", "3"))


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
