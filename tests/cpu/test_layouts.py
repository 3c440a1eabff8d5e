"""Every parallel layout gives the loss, gradients and weights of one rank."""

from __future__ import annotations

import ast

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from safetensors import safe_open
from safetensors.torch import load_file

LAYOUTS = {
    "dp2": {"nproc_per_node": 2},
    "tp2": {"nproc_per_node": 2, "tensor_model_parallel_size": 2},
    "pp2": {"nproc_per_node": 2, "pipeline_model_parallel_size": 2},
}
MODELS = [("llama", True), ("qwen3", False)]


@pytest.fixture(scope="module")
def one_rank(tiny, tmp_path_factory):
    """The step on one rank with the plain optimizer, by model."""
    return {model: step(tmp_path_factory.mktemp("one"), tiny(*model), use_distributed_optimizer=False) for model in MODELS}


def step(folder, model, **layout):
    """Tensors and numbers of one optimizer step under ``layout``."""
    run = write_run(folder, model, beta=0.1, epsilon=0.1, **layout)
    run_ranks("gradients", layout.get("nproc_per_node", 1), run, folder / "out.safetensors")
    with safe_open(folder / "out.safetensors", "pt") as file:
        numbers = {key: ast.literal_eval(value) for key, value in file.metadata().items()}
    return load_file(folder / "out.safetensors"), numbers


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m[0])
@pytest.mark.parametrize("distributed_optimizer", [False, True], ids=["plain", "zero1"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_rank(layout, distributed_optimizer, model, one_rank, tiny, tmp_path):
    want, want_numbers = one_rank[model]
    got, numbers = step(
        tmp_path, tiny(*model), use_distributed_optimizer=distributed_optimizer, **LAYOUTS[layout]
    )
    assert 0.05 < numbers["clip_fraction"] < 0.95, "the step must have clipped and unclipped tokens to mean anything"
    assert numbers == pytest.approx(want_numbers, rel=1e-5)
    expected = {name for name in want if not (distributed_optimizer and name.startswith("grad/"))}
    assert got.keys() == expected
    for name in expected:
        difference = (got[name] - want[name]).norm() / want[name].norm()
        assert difference <= 1e-5, f"{name} differs by {difference:.2e} relative"
        # element by element as well; Adam's first step turns rounding of a vanishing gradient into a visible step
        scale = want[name].abs().max()
        assert (got[name] - want[name]).abs().max() / scale <= (1e-5 if name.startswith("grad/") else 1e-3), name


def test_one_rank_trains_every_weight(one_rank, tiny):
    for model, (tensors, _) in one_rank.items():
        before = load_file(tiny(*model) / "model.safetensors")
        for name, value in before.items():
            assert tensors[f"grad/{name}"].any() and not torch.equal(tensors[f"weight/{name}"], value), name
