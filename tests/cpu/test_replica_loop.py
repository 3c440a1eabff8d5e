"""All ranks of a replica schedule the same tokens, whatever their first rank decides and when."""

from __future__ import annotations

import json

from ranks import run_ranks
from runfiles import write_run


def test_ranks_of_an_engine_schedule_the_same_tokens_in_every_step(tiny, tmp_path):
    run = write_run(
        tmp_path,
        tiny("qwen2"),
        nproc_per_node=2,
        tensor_model_parallel_size=2,
        vllm_tensor_parallel_size=2,
        vllm_max_model_len=96,
        vllm_max_num_seqs=8,
        vllm_engine_kwargs={"num_gpu_blocks_override": 24, "enable_prefix_caching": True},
    )
    run_ranks("lockstep", 2, run, tmp_path)

    def both(name):
        return [json.loads((tmp_path / f"{name}_{rank}.json").read_text()) for rank in (0, 1)]

    first, second = both("hash")
    assert first != second, "else the order of a set would be the same by itself"
    first, second = both("steps")
    assert len(first) > 200 and first == second
    first, second = both("ended")
    assert first == second and len(first) > 150
    assert json.loads((tmp_path / "given_up.json").read_text()) > 20
    running = [len(step) for step in both("steps")[0]]
    assert max(running) >= 4, "completions must be side by side, or this test proves nothing"
