"""Every parallel layout gives the loss, gradients and weights of one rank."""

from __future__ import annotations

import ast
import functools
import itertools

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from safetensors import safe_open
from safetensors.torch import load_file

LAYOUTS = {
    "one": {"nproc_per_node": 1},
    "dp2": {"nproc_per_node": 2},
    "tp2": {"nproc_per_node": 2, "tensor_model_parallel_size": 2},
    "pp2": {"nproc_per_node": 2, "pipeline_model_parallel_size": 2},
}
MODELS = [("llama", True), ("qwen3", False)]
OPTIMIZERS = ["plain", "distributed"]


@pytest.fixture(scope="module")
def steps(tiny, tmp_path_factory):
    """``steps(layout)[model, optimizer]``: tensors and numbers of one optimizer step."""

    @functools.cache
    def run(layout):
        folder, cases = tmp_path_factory.mktemp(layout), list(itertools.product(MODELS, OPTIMIZERS))
        runs = [
            write_run(
                folder,
                tiny(*model),
                name=f"run{n}",
                beta=0.1,
                epsilon=0.1,
                use_distributed_optimizer=optimizer == "distributed",
                **LAYOUTS[layout],
            )
            for n, (model, optimizer) in enumerate(cases)
        ]
        run_ranks("gradients", LAYOUTS[layout]["nproc_per_node"], folder, *runs)
        return {case: read(folder / f"{n}.safetensors") for n, case in enumerate(cases)}

    return run


def read(path):
    with safe_open(path, "pt") as file:
        return load_file(path), {key: ast.literal_eval(value) for key, value in file.metadata().items()}


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2"])
def test_layout_equals_one_rank(layout, optimizer, model, steps):
    want, want_numbers = steps("one")[model, "plain"]
    got, numbers = steps(layout)[model, optimizer]
    assert 0.05 < numbers["clip_fraction"] < 0.95, "the step must have clipped and unclipped tokens to mean anything"
    assert numbers == pytest.approx(want_numbers, rel=1e-5)
    # the distributed optimizer leaves each rank only its shard of the gradients: there the new weights speak for them
    assert got.keys() == {name for name in want if optimizer == "plain" or name.startswith("weight/")}
    for name, value in got.items():
        difference = (value - want[name]).norm() / want[name].norm()
        assert difference <= 1e-5, f"{name} differs by {difference:.2e} relative"
        # element by element as well; Adam's first step turns rounding of a vanishing gradient into a visible step
        scale = want[name].abs().max()
        assert (value - want[name]).abs().max() / scale <= (1e-5 if name.startswith("grad/") else 1e-3), name


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_weight_is_trained(model, steps, tiny):
    tensors, _ = steps("one")[model, "plain"]
    for name, value in load_file(tiny(*model) / "model.safetensors").items():
        assert tensors[f"grad/{name}"].any() and not torch.equal(tensors[f"weight/{name}"], value), name


def test_completions_without_advantage_change_no_gradient(tiny, tmp_path):
    run_ranks("zero_advantage", 1, write_run(tmp_path, tiny("qwen3", False), use_distributed_optimizer=False))
