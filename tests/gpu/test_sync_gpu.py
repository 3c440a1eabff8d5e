"""Weights inside vLLM on a GPU: every matrix compared with what was sent, mistakes noticed, routing returned."""

from __future__ import annotations

import json

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from test_training import call, metrics, new_run
from tiny import save_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU = {"device": "cuda", "dtype": "bfloat16", "vllm_dtype": "bfloat16", "vllm_kv_cache_gib": None}


def test_what_the_engine_holds_is_what_was_sent(tmp_path):
    model = save_tiny_model(tmp_path / "model", "qwen2", True)
    run = write_run(tmp_path, model, lr=3e-2, vllm_max_model_len=128, **GPU)
    run_ranks("rollout", 1, run, tmp_path)
    result, (said,) = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("result", "provoked"))
    assert result["compared"] == 26
    assert "1 of 26 sampled tensors differ: model.layers.2.input_layernorm.weight" in said["damaged"]
    assert "of 26 sampled tensors differ" in said["ignored"]
    assert said["distance"] < 0.2


@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_a_run_with_replayed_routing(mode, tmp_path):
    """The engine's own routing is what its log-probabilities come from, so with R3 the mismatch is no larger."""
    model = save_tiny_model(tmp_path / "model", "qwen3_moe", False)
    keys = GPU | {"router_replay_mode": mode, "nproc_per_node": 1, "train_iters": 2, "save_total_limit": None}
    done = call("submit", new_run(tmp_path, model, "replay", **keys))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(tmp_path / "runs" / "replay")
    assert sorted(rows) == [1, 2]
    assert all(row["moe/replay_changed"] < 0.2 and row["mismatch/logprob_abs_diff"] < 0.1 for row in rows.values())
