"""What a micro-batch's modules are told does not depend on the order in which a schedule takes micro-batches."""

from __future__ import annotations

import threading

import pytest
from ranks import run_ranks
from runfiles import write_run

from grpo_hpc.models.micro_batch_context import current_context, entered, in_this_context

LORA = {"tuner_type": "lora", "lora_rank": 4, "lora_dropout": 0.3}
MOE = {"moe_aux_loss_coeff": 0.3, "moe_z_loss_coeff": 0.03}
SELECTIVE = {"recompute_granularity": "selective"}
CASES = {
    "dropout-full": ("llama", True, LORA | {"recompute_granularity": "full"}),
    "dropout-mlp": ("llama", True, LORA | SELECTIVE | {"recompute_modules": ["mlp", "layernorm"]}),
    "routes-full": ("qwen3_moe", False, MOE | {"recompute_granularity": "full"}),
    "routes-moe": ("qwen3_moe", False, MOE | SELECTIVE | {"recompute_modules": ["moe"]}),
}
"""Family, whether the embedding is tied, keys of the run file."""


def test_backward_passes_may_come_in_any_order(tiny, tmp_path):
    """Masks, routes, balance losses and counts are those of the micro-batch that is computed again."""
    runs = [
        write_run(tmp_path, tiny(family, tied), name=name, use_distributed_optimizer=False, **keys)
        for name, (family, tied, keys) in CASES.items()
    ]
    run_ranks("order", 1, *runs)


def test_a_function_runs_in_the_context_it_was_given_in():
    found = []
    with entered("this"):
        function = in_this_context(lambda: found.append(current_context()))
    with entered("another"):
        function()
        thread = threading.Thread(target=function)  # as autograd has one for each GPU
        thread.start()
        thread.join()
        found.append(current_context())
    assert found == ["this", "this", "another"]
    assert current_context() is None


def test_an_error_leaves_no_context_behind():
    with pytest.raises(ValueError, match="inside"), entered("this"):
        raise ValueError("inside")
    assert current_context() is None
