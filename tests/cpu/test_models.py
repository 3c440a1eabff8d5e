"""Every family in Megatron against transformers: logits, gradients, and the weight map's round trip."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from proofs import VARIANTS
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file
from tiny import has_experts
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from grpo_hpc.models.families.counting import count_parameters
from grpo_hpc.models.families.read_shape import shape_of
from grpo_hpc.models.layouts import WHOLE, Fused, Qkv, Shard

BIASES = ("correction_bias", "expert_bias")  # of routers: no gradient moves them


@pytest.fixture(scope="module")
def logits(tiny, tmp_path_factory):
    """``logits(tp)``: for each family the tensors that the worker saved."""

    @functools.cache
    def run(tensor_parallel):
        folder = tmp_path_factory.mktemp(f"tp{tensor_parallel}")
        layout = {"nproc_per_node": tensor_parallel, "tensor_model_parallel_size": tensor_parallel}
        runs = []
        for n, (family, tied) in enumerate(VARIANTS):
            sequence = tensor_parallel > 1 and has_experts(family)  # which need it under tensor parallelism
            model = tiny(family, tied, layers=2)
            runs.append(write_run(folder, model, name=f"run{n}", sequence_parallel=sequence, **layout))
        run_ranks("logits", tensor_parallel, folder, *runs)
        return {family: load_file(folder / f"{n}.safetensors") for n, family in enumerate(VARIANTS)}

    return run


@pytest.mark.parametrize("family", VARIANTS, ids=str)
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_logits_equal_transformers_and_weights_survive(family, tensor_parallel, logits, tiny):
    out = logits(tensor_parallel)[family]
    torch.testing.assert_close(out["ours"], out["theirs"], atol=1e-4, rtol=1e-4)

    source = load_file(tiny(*family, layers=2) / "model.safetensors")
    exported = {name.removeprefix("weight/"): value for name, value in out.items() if name.startswith("weight/")}
    trained = {name for name in source if "visual." not in name}  # nobody trains a vision tower yet
    assert exported.keys() == trained
    assert all(torch.equal(exported[name], source[name]) for name in trained)


@pytest.mark.parametrize("family", [variant for variant in VARIANTS if "_vl" not in variant[0]], ids=str)
def test_gradients_equal_transformers(family, logits):
    out = logits(1)[family]
    names = [name for name in out if name.startswith("gradient/theirs/") and not name.endswith(BIASES)]
    assert len(names) > 10
    for name in names:
        ours, theirs = out[name.replace("theirs", "ours")], out[name]
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), name


PUBLISHED = json.loads((Path(__file__).parents[1] / "unit" / "models" / "published.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_transformers_counts(name):
    config = dict(PUBLISHED[name])
    auto = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    shape, known = shape_of(config), {"kimi_k2": "deepseek_v3"}
    model_type = config.pop("model_type")
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(known.get(model_type, model_type), **config))
    trained = [parameter.numel() for name, parameter in model.named_parameters() if not name.endswith(BIASES)]
    assert count_parameters(shape) == sum(trained)


def test_rows_of_a_tensor_that_fuses_several_come_back_whatever_their_width():
    """As those of an adapter's factor do, which has other columns than the weight."""
    layout = Fused(Qkv(4, 2, 8, (16,)))
    for width in (16, 3):
        tensor = torch.randn(64, width)
        whole = Fused(Qkv(4, 2, 8, (width,))).to_megatron([tensor], WHOLE)
        assert not torch.equal(whole, tensor) and torch.equal(layout.to_hf([whole])[0], tensor)
        shards = [Fused(Qkv(4, 2, 8, (width,))).to_megatron([tensor], Shard(rank, 2)) for rank in range(2)]
        assert torch.equal(layout.to_hf(shards)[0], tensor)
