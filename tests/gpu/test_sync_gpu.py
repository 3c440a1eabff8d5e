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
GPU = {"device": "cuda", "dtype": "bfloat16", "vllm_dtype": "bfloat16", "vllm_kv_cache_gib": 4.0}
GPU |= {"vllm_max_num_seqs": 16}  # few sizes for which CUDA graphs must be captured


@pytest.fixture(scope="module", params=[0, 1, 2])
def outcome(request, tmp_path_factory):
    """What the worker found, by sleep level."""
    folder = tmp_path_factory.mktemp("rollout")
    model = save_tiny_model(folder / "model", "qwen2", True)
    run = write_run(folder, model, lr=3e-2, vllm_max_model_len=128, sleep_level=request.param, **GPU)
    run_ranks("rollout", 1, run, folder)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("result", "provoked", "grown")}


def test_fifty_turns_leak_nothing(outcome):
    ((host, device),) = outcome["grown"]
    assert device < 8, f"{device} MiB of the GPU, where the model has half a megabyte"
    assert host < 200, f"{host} MiB; the engine's weights and the trainer's state go there and come back each time"


def test_what_the_engine_holds_is_what_was_sent(outcome):
    result, (said,) = outcome["result"], outcome["provoked"]
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
    assert all(row["mismatch/logprob_abs_diff"] < 0.1 for row in rows.values())
    assert rows[1]["moe/replay_changed"] < (0.2 if mode == "R3" else 1e-3), "R2 was recorded with these weights"
    assert rows[2]["moe/replay_changed"] < 0.5, "the first update moves small routers far: 0.43 on a CPU"
