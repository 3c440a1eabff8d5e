"""Every family in Megatron against transformers, and the weight map's round trip."""

from __future__ import annotations

import functools

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file

FAMILIES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]


@pytest.fixture(scope="module")
def logits(tiny, tmp_path_factory):
    """``logits(tp)``: for each family the tensors that the worker saved."""

    @functools.cache
    def run(tensor_parallel):
        folder = tmp_path_factory.mktemp(f"tp{tensor_parallel}")
        layout = {"nproc_per_node": tensor_parallel, "tensor_model_parallel_size": tensor_parallel}
        runs = [write_run(folder, tiny(*family), name=f"run{n}", **layout) for n, family in enumerate(FAMILIES)]
        run_ranks("logits", tensor_parallel, folder, *runs)
        return {family: load_file(folder / f"{n}.safetensors") for n, family in enumerate(FAMILIES)}

    return run


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_logits_equal_transformers_and_weights_survive(family, tensor_parallel, logits, tiny):
    out = logits(tensor_parallel)[family]
    torch.testing.assert_close(out["ours"], out["theirs"], atol=1e-4, rtol=1e-4)

    source = load_file(tiny(*family) / "model.safetensors")
    exported = {name.removeprefix("weight/"): value for name, value in out.items() if name.startswith("weight/")}
    assert exported.keys() == source.keys()
    assert all(torch.equal(exported[name], source[name]) for name in source)
