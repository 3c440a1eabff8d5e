"""Every family in Megatron against transformers, and the weight map's round trip."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file

FAMILIES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_logits_equal_transformers_and_weights_survive(family, tied, tensor_parallel, tiny, tmp_path):
    model = tiny(family, tied)
    run = write_run(
        tmp_path, model, nproc_per_node=tensor_parallel, tensor_model_parallel_size=tensor_parallel
    )
    run_ranks("logits", tensor_parallel, run, tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(out["ours"], out["theirs"], atol=1e-4, rtol=1e-4)

    source = load_file(model / "model.safetensors")
    exported = {name.removeprefix("weight/"): value for name, value in out.items() if name.startswith("weight/")}
    assert exported.keys() == source.keys()
    assert all(torch.equal(exported[name], source[name]) for name in source)
