"""The trainer's model on a GPU, TransformerEngine in bf16, against transformers and against itself in fp32."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file
from tiny import save_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
FAMILIES = [("llama", True), ("qwen2", True), ("qwen3", False)]
EXPERTS = [("qwen3_moe", False), ("mixtral", False), ("olmoe", False), ("deepseek_v3", False)]


@pytest.mark.parametrize(("family", "tied"), [*FAMILIES, *EXPERTS])
def test_logits_are_those_of_transformers_up_to_bf16(family, tied, tmp_path):
    model = save_tiny_model(tmp_path / "model", family, tied)
    run = write_run(tmp_path, model, device="cuda", dtype="bfloat16", vllm_dtype="bfloat16")
    run_ranks("logits", 1, tmp_path, run)
    out = load_file(tmp_path / "0.safetensors")
    difference, spread = (out["ours"] - out["theirs"]).abs(), out["theirs"].std()
    largest = difference.amax(-1)  # of each token
    if (family, tied) in EXPERTS:  # a few tokens go to other experts in bf16
        largest = largest.sort().values[: -max(1, len(largest) // 20)]
    assert difference.mean() < 0.02 * spread and largest.max() < 0.1 * spread
    source = load_file(model / "model.safetensors")
    assert all(torch.equal(out[f"weight/{name}"], value.bfloat16()) for name, value in source.items())


@pytest.mark.parametrize(("family", "tied"), [*FAMILIES, *EXPERTS[:2]])
def test_gradients_are_those_of_fp32_up_to_bf16(family, tied, tmp_path):
    """For models with experts this is the grouped matrix product."""
    model = save_tiny_model(tmp_path / "model", family, tied)
    results = {}
    for dtype in ("float32", "bfloat16"):
        folder = tmp_path / dtype
        folder.mkdir()
        run = write_run(
            folder, model, device="cuda", dtype=dtype, vllm_dtype="bfloat16", use_distributed_optimizer=False
        )
        run_ranks("gradients", 1, folder, run)
        results[dtype] = load_file(folder / "tiny.safetensors")
    for name, exact in results["float32"].items():
        if name.startswith("grad/"):
            ours = results["bfloat16"][name].float()
            cosine = torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)
            experts = (family, tied) in EXPERTS  # a few tokens go to other experts in bf16
            assert cosine > (0.95 if experts else 0.99), f"{name}: {cosine:.4f}"
            assert ours.norm() / exact.norm() == pytest.approx(1.0, abs=0.2 if experts else 0.05), name
