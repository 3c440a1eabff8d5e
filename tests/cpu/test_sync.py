"""Pieces of a weight sync: the hash of tensors, the buckets, the canary."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import call, metrics, new_run
from tiny import save_tiny_model

from grpo_hpc.errors import RolloutError
from grpo_hpc.rollout.digest import tensor_hash
from grpo_hpc.rollout.engine import loads_in_place
from grpo_hpc.rollout.reload_warnings import Expected, kinds_without_weights
from grpo_hpc.train import engine_check

MASK = (1 << 64) - 1


def slow_hash(tensor):
    """splitmix64's output function on each element's bits as Python numbers; shifts keep the sign, as torch's do."""
    total = 0
    for value in tensor.flatten():
        number = int(value.view({2: torch.int16, 4: torch.int32}[tensor.element_size()]))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            number = ((number ^ (number >> shift)) * factor) & MASK
            number -= (number >> 63) << 64
        total += number
    return total & MASK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=st.integers(0, 2**31), parts=st.integers(1, 5))
def test_the_hash_adds_up_over_parts_in_any_order(dtype, seed, parts):
    tensor = torch.randn(37, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    whole = tensor_hash(tensor)
    assert int(whole) & MASK == slow_hash(tensor)
    shuffled = tensor[torch.randperm(37, generator=torch.Generator().manual_seed(seed))]
    assert sum(tensor_hash(part) for part in shuffled.chunk(parts)) == whole
    assert tensor_hash(torch.cat([tensor, torch.zeros(5, 3, dtype=dtype), -torch.zeros(2, 3, dtype=dtype)])) == whole
    bits = tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
    bits[seed % 37, seed % 3] ^= 1
    assert tensor_hash(tensor) != whole


def layer(kind, method=None, backend=None):
    """What stands in a vLLM model, by the names of its classes."""
    module = type(kind, (torch.nn.Module,), {})()
    if method:
        module.quant_method = type(method, (), {"unquantized_backend": backend})()
    return module


@pytest.mark.parametrize(
    ("added", "in_place"),
    [
        (layer("QKVParallelLinear", "UnquantizedLinearMethod"), True),
        (layer("RoutedExperts", "UnquantizedFusedMoEMethod", SimpleNamespace(name="TRITON")), True),
        (layer("RoutedExperts", "UnquantizedFusedMoEMethod", SimpleNamespace(name="FLASHINFER_CUTLASS")), False),
        (layer("RoutedExperts", "UnquantizedFusedMoEMethod"), False),
        (layer("QKVParallelLinear", "Fp8LinearMethod"), False),
        (layer("MLAAttention"), False),
    ],
)
def test_weights_go_into_live_layers_only_where_these_compute_with_them_as_loaded(added, in_place):
    plain = torch.nn.Sequential(layer("VocabParallelEmbedding", "UnquantizedEmbeddingMethod"), layer("RMSNorm"))
    assert loads_in_place(plain)
    assert loads_in_place(torch.nn.Sequential(plain, torch.nn.Sequential(added))) == in_place


def test_a_reload_warns_of_layers_that_ought_to_get_weights_and_of_no_others(caplog):
    embedding, head, norm = layer("VocabParallelEmbedding"), layer("ParallelLMHead"), layer("RMSNorm")
    embedding.weight = head.weight = torch.nn.Parameter(torch.zeros(2))
    norm.weight = torch.nn.Parameter(torch.zeros(2))
    model = torch.nn.Sequential(embedding, layer("RotaryEmbedding"), norm, head)
    assert kinds_without_weights(model) == {"Sequential", "RotaryEmbedding", "ParallelLMHead"}
    logger = logging.getLogger(f"{__name__}.reload")
    logger.addFilter(Expected(kinds_without_weights(model)))
    for name in ("ParallelLMHead", "RMSNorm"):
        logger.warning("%s: Failed to load weights", name)
    logger.warning("%s: something else", "ParallelLMHead")
    assert caplog.messages == ["RMSNorm: Failed to load weights", "ParallelLMHead: something else"]


def configured(**rollout):
    given = {"canary_tolerance": None, "vllm_dtype": "float32"} | rollout
    return SimpleNamespace(rollout=SimpleNamespace(**given), model=SimpleNamespace(dtype="float32"))


@pytest.mark.parametrize(
    ("given", "limit"), [({}, 0.02), ({"vllm_dtype": "bfloat16"}, 0.2), ({"canary_tolerance": 3.0}, 3)]
)
@pytest.mark.parametrize("side", [0.99, 1.01, math.nan])
def test_the_canary_has_one_limit(given, limit, side):
    engine, trainer = np.array([-1.0, -2.0], np.float32), np.array([-1.0 - 2 * limit * side, -2.0])
    if side == 0.99:
        assert engine_check.check(configured(**given), engine, trainer) == pytest.approx(limit * side)
    else:
        with pytest.raises(RolloutError, match="over 2 tokens") as error:
            engine_check.check(configured(**given), engine, trainer)
        assert f"canary_tolerance is {limit:g}" in error.value.message and "Likely causes" in error.value.hint


@pytest.mark.parametrize(("family", "tied"), [("mixtral", False), ("qwen2_5_vl", False), ("qwen3_vl", True)])
def test_every_kind_of_model_goes_through_a_run_and_its_engine_follows(family, tied, tmp_path):
    """Experts that vLLM packs on a CPU are packed again at every sync, or the canary would end the run; families with
    a vision tower train on rows of text alone."""
    model = save_tiny_model(tmp_path / "model", family, tied, layers=2)
    keys = {"nproc_per_node": 1, "train_iters": 2, "steps_per_generation": 1, "save_total_limit": None, "lr": 3e-2}
    done = call("submit", new_run(tmp_path, model, "run", **keys))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(tmp_path / "runs" / "run")
    assert sorted(rows) == [1, 2]
    assert all(row["mismatch/logprob_abs_diff"] < 1e-4 for row in rows.values())
