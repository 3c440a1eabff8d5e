"""A completion is decoded and scored once, however many ranks share the engine that sampled it."""

from __future__ import annotations

from pathlib import Path

from ranks import run_ranks
from runfiles import write_run

PLUGINS = Path(__file__).parent / "plugins.py"


def test_rewards_and_decoding_run_once_for_each_completion(tmp_path):
    """Two ranks of one engine; of its 16 completions one is aborted and one is empty."""
    (tmp_path / "model").mkdir()
    run = write_run(
        tmp_path,
        tmp_path / "model",
        nproc_per_node=2,
        tensor_model_parallel_size=2,
        vllm_tensor_parallel_size=2,
        reward_funcs=[f"{PLUGINS}:writes"],
    )
    run_ranks("collecting", 2, run, tmp_path / "calls")
