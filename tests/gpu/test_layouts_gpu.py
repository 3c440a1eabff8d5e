"""Every axis on two GPUs in bf16 against one GPU in fp32."""

from __future__ import annotations

import pytest
import torch
from layouts import CP2, EP2, ETP2, MODELS, ONE, OVERLAP, PP2, SP, TP2, VPP2
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file
from tiny import save_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LAYOUTS = {
    "dp2-overlap": ("qwen3", OVERLAP),
    "tp2": ("llama", TP2),
    "tp2-sp-full": ("qwen3", TP2 | SP | {"recompute_granularity": "full"}),
    "pp2": ("qwen3", PP2),
    "vpp2-pp2": ("llama", VPP2),
    "cp2": ("qwen3", CP2),
    "ep2": ("moe", EP2 | ONE),
    "ep2-tp2-sp": ("moe", EP2 | TP2 | SP),
    "etp2-tp2-sp": ("mixtral", ETP2 | TP2 | SP),
    "whole-experts-tp2-sp": ("moe", TP2 | SP),
}
USED = sorted({model for model, _ in LAYOUTS.values()})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Tensors of one optimizer step by layout, and in fp32 on one GPU by model."""
    folder = tmp_path_factory.mktemp("layouts")
    paths = {name: save_tiny_model(folder / "models" / name, *MODELS[name]) for name in USED}
    common = {"device": "cuda", "vllm_dtype": "bfloat16", "beta": 0.1, "epsilon": 0.1}
    common |= {"use_distributed_optimizer": False}

    def run(name, model, **keys):
        return write_run(folder, paths[model], name=name, **(common | keys))

    run_ranks("gradients", 1, folder, *(run(f"one-{model}", model, dtype="float32") for model in USED))
    pairs = [run(name, model, dtype="bfloat16", nproc_per_node=2, **keys) for name, (model, keys) in LAYOUTS.items()]
    run_ranks("gradients", 2, folder, *pairs, timeout=500)
    names = [*LAYOUTS, *(f"one-{model}" for model in USED)]
    return {name: load_file(folder / f"{name}.safetensors") for name in names}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_one_gpu_in_fp32_up_to_bf16(layout, results):
    model = LAYOUTS[layout][0]
    experts = model in ("moe", "mixtral")  # a few tokens go to other experts in bf16
    for name, exact in results[f"one-{model}"].items():
        if name.startswith("grad/"):
            ours = results[layout][name].float()
            cosine = torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)
            assert cosine > (0.95 if experts else 0.99), f"{name}: {cosine:.4f}"
            assert ours.norm() / exact.norm() == pytest.approx(1.0, abs=0.2 if experts else 0.05), name
