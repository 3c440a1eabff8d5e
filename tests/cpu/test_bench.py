"""The benchmark's count of floating-point operations, against PyTorch's own count of a real forward and backward."""

from __future__ import annotations

import json

import pytest

from tools import bench_experts
from tools.bench.random_model import SHAPES
from tools.bench.work import Flops


@pytest.mark.parametrize("changed", [{}, {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 96}])
def test_flops_of_a_training_step(changed):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPES["toy"] | changed
    config = AutoConfig.for_model(**shape, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config)
    prompt, completion = 5, 11
    with FlopCounterMode(display=False) as counter:
        tokens = torch.zeros(1, prompt + completion, dtype=torch.long)
        model(tokens, logits_to_keep=completion).logits.sum().backward()
    flops = Flops.of(shape)
    above_diagonal = 6.0 * flops.attention * (prompt + completion) ** 2  # eager attention does not skip it
    assert counter.get_total_flops() == flops.train(prompt, completion) + above_diagonal


def test_a_layer_of_experts_is_timed_beside_one_product_and_a_loop(tmp_path):
    out = tmp_path / "experts.json"
    shape = ["--tokens", "64", "--experts", "4", "--topk", "2", "--hidden", "32", "--ffn", "16", "--turns", "2"]
    assert bench_experts.main(["--device", "cpu", *shape, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["rows"]) == {"one dense product", "at once", "one by one"}
    assert all(0 < row["host"] <= row["whole"] for row in found["rows"].values())
    assert found["product_flops"] == 6 * 64 * 2 * 32 * 2 * 16
