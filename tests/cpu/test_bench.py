"""The benchmark's count of floating-point operations, against PyTorch's own count of a real forward and backward."""

from __future__ import annotations

import pytest

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
