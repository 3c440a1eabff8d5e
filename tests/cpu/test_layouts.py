"""Every parallel layout gives the loss, gradients and weights of one rank.

All layouts run one after another in the same four processes. docs/layouts.md lists them.
"""

from __future__ import annotations

import ast

import pytest
import torch
from layouts import LAYOUTS, MODELS, Case, markdown
from ranks import ROOT, run_ranks
from runfiles import write_run
from safetensors import safe_open
from safetensors.torch import load_file

RANKS = 4


@pytest.fixture(scope="module")
def references(tiny, tmp_path_factory):
    """Tensors and numbers of one optimizer step on one rank, by model."""
    folder = tmp_path_factory.mktemp("one")
    runs = [run_file(folder, tiny, model, name=model) for model in MODELS]
    run_ranks("gradients", 1, folder, *runs)
    return {model: read(folder / f"{model}.safetensors") for model in MODELS}


@pytest.fixture(scope="module")
def steps(tiny, tmp_path_factory):
    """The same on four ranks, by the name of the layout."""
    folder = tmp_path_factory.mktemp("four")
    runs = [
        run_file(folder, tiny, case.model, name=case.name, nproc_per_node=RANKS, **case.keys)
        for case in LAYOUTS.values()
    ]
    run_ranks("gradients", RANKS, folder, *runs, timeout=600)
    return {name: read(folder / f"{name}.safetensors") for name in LAYOUTS}


def run_file(folder, tiny, model, **keys):
    defaults = {"beta": 0.1, "epsilon": 0.1, "use_distributed_optimizer": False}
    if model in ("moe", "mixtral", "deepseek"):
        defaults |= {"moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.01}
    if model == "deepseek":
        defaults |= {"moe_router_bias_update_rate": 0.01}
    return write_run(folder, tiny(*MODELS[model]), **(defaults | keys))


def read(path):
    with safe_open(path, "pt") as file:
        return load_file(path), {key: ast.literal_eval(value) for key, value in file.metadata().items()}


@pytest.mark.parametrize("case", LAYOUTS.values(), ids=str)
def test_layout_equals_one_rank(case: Case, steps, references):
    want, want_numbers = references[case.model]
    got, numbers = steps[case.name]
    assert 0.05 < numbers["clip_ratio/region_mean"] < 0.95, (
        "the step must have clipped and unclipped tokens to mean anything"
    )
    assert numbers == pytest.approx(want_numbers, rel=1e-5)
    overlaps = case.keys.get("overlap_param_gather", False)  # only then a second gradient is computed
    assert got.keys() == {name for name in want if overlaps or not name.startswith("next/")}
    for name, value in got.items():
        # Adam's first step turns rounding of a vanishing gradient into a visible step of the weight
        norm, each = {"grad": (1e-5, 1e-5), "weight": (1e-4, 1e-2), "next": (1e-3, 1e-2)}[name.partition("/")[0]]
        difference = (value - want[name]).norm() / want[name].norm()
        assert difference <= norm, f"{name} differs by {difference:.2e} relative"
        assert (value - want[name]).abs().max() / want[name].abs().max() <= each, name


@pytest.mark.parametrize("model", MODELS)
def test_every_weight_is_trained(model, references, tiny):
    tensors, _ = references[model]
    for name, value in load_file(tiny(*MODELS[model]) / "model.safetensors").items():
        assert tensors[f"grad/{name}"].any() and not torch.equal(tensors[f"weight/{name}"], value), name


def test_completions_without_advantage_change_no_gradient(tiny, tmp_path):
    run_ranks("zero_advantage", 1, write_run(tmp_path, tiny("qwen3", False), use_distributed_optimizer=False))


def test_the_page_is_current():
    page = (ROOT / "docs" / "layouts.md").read_text()
    assert page == markdown(), "run: PYTHONPATH=tests/cpu python -m layouts > docs/layouts.md"
