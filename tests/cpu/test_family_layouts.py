"""One optimizer step of every family on two ranks is that of one rank. docs/models.md lists them."""

from __future__ import annotations

import ast

import pytest
from proofs import CUT, axes, markdown
from ranks import ROOT, run_ranks
from runfiles import write_run
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import has_experts

SMALL = {"beta": 0.1, "use_distributed_optimizer": False, "global_batch_size": 8, "num_generations": 2}
CASES = [(name, axis) for name, _ in CUT for axis in axes(name)]


@pytest.fixture(scope="module")
def steps(tiny, tmp_path_factory):
    """``(tensors, numbers)`` of the step, by variant and axis; on one rank the axis is ''."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    alone = [run_file(one, tiny(*variant, layers=2), variant[0]) for variant in CUT]
    cut = [
        run_file(two, tiny(name, tied, layers=2), name, axis, nproc_per_node=2, **keys)
        for name, tied in CUT
        for axis, keys in axes(name).items()
    ]
    run_ranks("gradients", 1, one, *alone)
    run_ranks("gradients", 2, two, *cut, timeout=600)
    found = {(name, ""): read(one / f"{name}.safetensors") for name, _ in CUT}
    return found | {(name, axis): read(two / f"{name}-{axis}.safetensors") for name, axis in CASES}


def run_file(folder, model, name, axis="", **keys):
    balance = {"moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.01} if has_experts(name) else {}
    named = name.replace("+", ".") + (f"-{axis}" if axis else "")
    return write_run(folder, model, name=named, **SMALL, **balance, **keys)


def read(path):
    path = path.with_name(path.name.replace("+", "."))
    with safe_open(path, "pt") as file:
        return load_file(path), {key: ast.literal_eval(value) for key, value in file.metadata().items()}


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_a_step_on_two_ranks_is_that_of_one(name, axis, steps):
    (want, want_numbers), (got, numbers) = steps[name, ""], steps[name, axis]
    assert numbers == pytest.approx(want_numbers, rel=1e-4)
    assert got.keys() == {key for key in want if not key.startswith("next/")}
    for key, value in got.items():
        # Adam's first step turns rounding of a vanishing gradient into a visible step of the weight; a bias of keys has
        # no gradient at all in dimensions that are not rotated
        limit = 1e-5 if key.startswith("grad/") else 1e-3
        difference = (value - want[key]).norm() / want[key].norm().clamp(min=1e-9)
        assert difference <= limit, f"{key} differs by {difference:.2e} relative"


def test_the_page_is_current():
    page = (ROOT / "docs" / "models.md").read_text()
    assert page == markdown(), "run: PYTHONPATH=tests/cpu python -m proofs > docs/models.md"
