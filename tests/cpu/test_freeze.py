"""Frozen parameters: not one bit moves, no gradient and no optimizer state is kept for them, under dp and tp."""

from __future__ import annotations

import pytest
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file

LAYOUTS = {
    "dp2-sharded": {"use_distributed_optimizer": True, "overlap_grad_reduce": True},
    "tp2-full": {"tensor_model_parallel_size": 2, "recompute_granularity": "full", "use_distributed_optimizer": False},
}
PATTERN = r"embed_tokens|layers\.[01]\.|self_attn|input_layernorm"


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("freeze")
    runs = [
        write_run(folder, tiny("qwen3", False), name=name, nproc_per_node=2, freeze_parameters_regex=PATTERN, **keys)
        for name, keys in LAYOUTS.items()
    ]
    run_ranks("freeze", 2, folder, *runs)
    return (folder / "frozen").read_text().split(), {n: load_file(folder / f"{n}.safetensors") for n in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_weights_stay_and_all_others_move(layout, results, tiny):
    frozen, weights = results
    before = load_file(tiny("qwen3", False) / "model.safetensors")
    assert 0 < len(frozen) < len(before)
    for name, value in weights[layout].items():
        assert value.equal(before[name]) == (name in frozen), name


def test_the_layouts_agree(results):
    one, other = results[1].values()
    for name, value in one.items():
        assert (value - other[name]).norm() <= 1e-4 * value.norm(), name
