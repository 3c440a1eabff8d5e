"""Episodes of several turns and branches: what is foreign is attended to and never trained, in every layout."""

from __future__ import annotations

from ranks import run_ranks
from runfiles import write_run

LAYOUTS = {
    "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "dp2": {"micro_batch_size": 1},
    "groups": {"loss_type": "real"},
}


def test_loss_and_gradient_are_those_of_a_loop_over_labels(tiny, tmp_path):
    whole = {"nproc_per_node": 2, "use_distributed_optimizer": False}  # every rank has all of the gradient
    runs = [write_run(tmp_path, tiny("qwen3", False), name=name, **whole, **keys) for name, keys in LAYOUTS.items()]
    run_ranks("episodes", 2, *runs)
