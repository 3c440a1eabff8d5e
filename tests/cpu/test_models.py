"""Every family in Megatron against transformers, and the weight map's round trip."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from grpo_hpc.models.families.counting import count_parameters
from grpo_hpc.models.families.read_shape import shape_of

FAMILIES = [
    ("llama", True),
    ("llama+3.1", False),
    ("mistral", False),
    ("qwen2", True),
    ("qwen3", False),
    ("qwen3_moe", True),
    ("qwen3_moe+dense", False),
    ("mixtral", False),
    ("deepseek_v3", False),
    ("olmoe", False),
    ("qwen2_5_vl", False),
    ("qwen3_vl", True),
]


@pytest.fixture(scope="module")
def logits(tiny, tmp_path_factory):
    """``logits(tp)``: for each family the tensors that the worker saved."""

    @functools.cache
    def run(tensor_parallel):
        folder = tmp_path_factory.mktemp(f"tp{tensor_parallel}")
        layout = {"nproc_per_node": tensor_parallel, "tensor_model_parallel_size": tensor_parallel}
        runs = []
        for n, (family, tied) in enumerate(FAMILIES):
            # experts under tensor parallelism need it
            sequence = tensor_parallel > 1 and family.split("+")[0] in ("qwen3_moe", "mixtral", "deepseek_v3", "olmoe")
            runs.append(write_run(folder, tiny(family, tied), name=f"run{n}", sequence_parallel=sequence, **layout))
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
    trained = {name for name in source if "visual." not in name}  # nobody trains a vision tower yet
    assert exported.keys() == trained
    assert all(torch.equal(exported[name], source[name]) for name in trained)


PUBLISHED = json.loads((Path(__file__).parents[1] / "unit" / "models" / "published.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_transformers_counts(name):
    config = dict(PUBLISHED[name])
    auto = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    shape = shape_of(config)
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    assert count_parameters(shape) == sum(parameter.numel() for parameter in model.parameters())
