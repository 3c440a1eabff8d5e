"""Adapters on two GPUs in bf16 against one GPU in fp32."""

from __future__ import annotations

import pytest
import torch
from layouts import CP2, EP2, PP2, SHARDED, SP, TP2
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file
from tiny import save_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LORA = {"tuner_type": "lora", "lora_rank": 4, "lora_alpha": 8.0, "device": "cuda", "vllm_dtype": "bfloat16"}
MODELS = {"dense": ("llama", True), "experts": ("qwen3_moe", False)}
LAYOUTS = {
    "dense-dp2-sharded": SHARDED,
    "dense-tp2-sp-full": TP2 | SP | {"recompute_granularity": "full"},
    "dense-pp2": PP2,
    "dense-cp2-sharded": CP2 | SHARDED,
    "experts-ep2": EP2,
    "experts-ep2-tp2-sp": EP2 | TP2 | SP,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    paths = {name: save_tiny_model(folder / "models" / name, *model) for name, model in MODELS.items()}

    def run(name, **keys):
        keys = {"use_distributed_optimizer": False} | LORA | keys
        return write_run(folder, paths[name.partition("-")[0]], name=name, **keys)

    run_ranks("lora", 1, folder, *(run(f"{name}-one", dtype="float32") for name in MODELS))
    pairs = [run(name, dtype="bfloat16", nproc_per_node=2, **keys) for name, keys in LAYOUTS.items()]
    run_ranks("lora", 2, folder, *pairs, timeout=500)
    return {name: load_file(folder / f"{name}.safetensors") for name in [*LAYOUTS, *(f"{m}-one" for m in MODELS)]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_one_gpu_in_fp32_up_to_bf16(layout, results):
    """Of the second step: B has moved, so A has a gradient. The base has not."""
    model = layout.partition("-")[0]
    exact, found = results[f"{model}-one"], results[layout]
    gradients = [name for name in exact if name.startswith("grad/")]
    ours, want = (torch.cat([tensors[name].float().flatten() for name in gradients]) for tensors in (found, exact))
    cosine = torch.nn.functional.cosine_similarity(ours, want, dim=0)
    assert gradients and cosine > (0.9 if model == "experts" else 0.97), f"{cosine:.4f}"
    for name in (name for name in exact if name.startswith("base/")):
        assert torch.equal(found[name], exact[name].bfloat16()), name
