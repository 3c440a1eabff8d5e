"""Where Adam keeps its state, and in which precision: the same update, and the same after a resume."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file
from tiny import save_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PRECISE = {"use_precision_aware_optimizer": True}
KINDS = {
    "plain": {},
    "precise": PRECISE,
    "half-moments": PRECISE | {"exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"},
    "on-host": PRECISE | {"optimizer_cpu_offload": True},
    "half-on-host": PRECISE | {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 0.5},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, and the run file of each kind; all in bf16 with fp32 main weights."""
    folder = tmp_path_factory.mktemp("optimizers")
    model = save_tiny_model(folder / "model", "qwen3", False)
    common = {"device": "cuda", "dtype": "bfloat16", "vllm_dtype": "bfloat16", "use_distributed_optimizer": True}
    return folder, {name: write_run(folder, model, name=name, **(common | keys)) for name, keys in KINDS.items()}


@pytest.fixture(scope="module")
def updated(made):
    folder, runs = made
    run_ranks("gradients", 1, folder, *runs.values())
    return {name: load_file(folder / f"{name}.safetensors") for name in KINDS}


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_the_update_is_that_of_plain_adam(kind, updated):
    plain, other = updated["plain"], updated[kind]
    names = [name.removeprefix("weight/") for name in plain if name.startswith("weight/")]
    assert names
    for name in names:
        assert torch.equal(plain[f"grad/{name}"], other[f"grad/{name}"])
        one, two = plain[f"weight/{name}"].float(), other[f"weight/{name}"].float()
        # Adam's first step is as long for a tiny gradient as for a large one: where rounding decides, bf16 may round
        # the updated weight to its neighbour
        assert ((one - two).abs() > 0.01 * one.abs() + 1e-6).float().mean() < 0.01, name


@pytest.mark.parametrize("where", ["device", "host"])
def test_resumed_steps_are_equal_to_the_bit(where, made):
    folder, runs = made
    run_ranks("checkpoint", 1, folder, *(run for kind, run in runs.items() if ("host" in kind) == (where == "host")))
