"""A run that stops in the middle of a rollout goes on with it in any layout that can, or says why it cannot."""

from __future__ import annotations

import json

import pytest
from ranks import run_ranks
from runfiles import write_run


def run_file(folder, model, name, **keys):
    sizes = {"global_batch_size": 20, "steps_per_generation": 2, "num_generations": 4, "lr": 1e-2}
    return write_run(folder, model, name=name, use_distributed_optimizer=True, **(sizes | keys))


@pytest.fixture(scope="module")
def half_used(tiny, tmp_path_factory):
    """Saved by two data-parallel ranks; what its second step gave there."""
    folder = tmp_path_factory.mktemp("midway")
    run_ranks("midway", 2, folder, run_file(folder, tiny("llama"), "dp2", nproc_per_node=2), "save")
    return folder, json.loads((folder / "dp2.json").read_text())


@pytest.mark.parametrize(
    ("name", "ranks", "keys"),
    [
        ("again", 2, {}),
        ("dp1", 1, {"micro_batch_size": 4}),
        ("dp4", 4, {"micro_batch_size": 5}),
        ("tp2", 2, {"tensor_model_parallel_size": 2}),
        ("one_by_one", 4, {"micro_batch_size": 1}),
    ],
)
def test_its_second_step_is_the_same_in_every_layout(name, ranks, keys, half_used, tiny):
    folder, want = half_used
    run_ranks("midway", ranks, folder, run_file(folder, tiny("llama"), name, nproc_per_node=ranks, **keys), "go_on")
    got = json.loads((folder / f"{name}.json").read_text())
    assert "error" not in got, got
    exact = {"rel": 0, "abs": 0} if name == "again" else {"rel": 1e-5}
    assert got["loss"] == pytest.approx(want["loss"], **exact)
    assert got["grad_norm"] == pytest.approx(want["grad_norm"], **exact)


def test_a_layout_that_cannot_share_what_is_left_says_so(tmp_path, tiny):
    run_ranks("midway", 1, tmp_path, run_file(tmp_path, tiny("llama"), "dp1"), "save", "few")
    assert json.loads((tmp_path / "dp1.json").read_text())["trained"] == 3
    run_ranks(
        "midway", 4, tmp_path, run_file(tmp_path, tiny("llama"), "dp4", nproc_per_node=4, micro_batch_size=5), "go_on"
    )
    said = json.loads((tmp_path / "dp4.json").read_text())
    assert "cannot go on in this layout" in said["error"] and "4 data-parallel ranks" in said["error"]
    assert "1 data-parallel ranks that it was saved with" in said["hint"]
