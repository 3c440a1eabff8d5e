"""The engine samples from the policy that is trained, before and after an update."""

from __future__ import annotations

import json

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run

LAYOUTS = {
    "dp2": {"nproc_per_node": 2},
    "tp2, vllm tp2": {
        "nproc_per_node": 2,
        "tensor_model_parallel_size": 2,
        "vllm_tensor_parallel_size": 2,
        "sync_bucket_mib": 0.3,
    },
}


@pytest.fixture(scope="module", params=LAYOUTS)
def outcome(request, tiny, tmp_path_factory):
    """What the worker found, the model that it exported after one large update, and what it was before.

    The embedding is tied.
    """
    from transformers import AutoModelForCausalLM

    folder, start = tmp_path_factory.mktemp("rollout"), tiny("qwen2", tied=True)
    run = write_run(folder, start, lr=3e-2, vllm_max_model_len=128, **LAYOUTS[request.param])
    run_ranks("rollout", 2, run, folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "export", dtype=torch.float32)
    result = json.loads((folder / "result.json").read_text())
    result["provoked"] = json.loads((folder / "provoked.json").read_text())
    result["grown"] = json.loads((folder / "grown.json").read_text()) if request.param == "dp2" else None
    return result, model, AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)


def test_first_update_is_on_policy(outcome):
    result = outcome[0]
    for worst_mismatch, ratio_error, _, _ in result["ranks"]:
        assert worst_mismatch <= 1e-3, "rollout log-probabilities against training log-probabilities"
        assert ratio_error <= 1e-6


def test_after_a_sync_greedy_output_is_that_of_the_exported_model(outcome):
    result, model, _ = outcome
    for _, _, before, after in result["ranks"]:
        assert after != before, "the update must show, or this test proves nothing"
        assert_greedy(model, result["prompts"], after)


def test_an_engine_that_read_no_weights_has_those_of_the_first_sync(outcome):
    result, _, start = outcome
    for _, _, before, _ in result["ranks"]:
        assert_greedy(start, result["prompts"], before)


def assert_greedy(model, prompts, completions):
    for prompt, tokens in zip(prompts, completions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == tokens


def test_ranks_agree(outcome):
    (_, _, _, first), (_, _, _, second) = outcome[0]["ranks"]
    assert first == second, "replicas hold the same weights, and ranks of one replica the same answers"


def test_every_matrix_inside_the_engine_is_compared_with_what_was_sent(outcome):
    result, model, _ = outcome
    layers = model.config.num_hidden_layers
    assert result["compared"] == 2 + 6 * layers, "embedding, last norm; qkv, o, gate and up, down, two norms"
    assert result["bytes"] == sum(p.numel() * 4 for p in model.parameters())


def test_a_sync_that_went_wrong_is_noticed(outcome):
    for said in outcome[0]["provoked"]:
        assert "1 of 26 sampled tensors differ: model.layers.2.input_layernorm.weight (sent " in said["damaged"]
        assert "26 of 26 sampled tensors differ" in said["ignored"]


def test_the_canary_notices_a_matrix_that_was_sent_in_the_wrong_order(outcome):
    for said in outcome[0]["provoked"]:
        assert said["distance"] < 1e-4
        assert "engine and trainer disagree" in said["canary"] and "Likely causes" in said["canary"]


@pytest.mark.parametrize("outcome", ["dp2"], indirect=True)
def test_fifty_turns_of_sync_rollout_and_training_leak_nothing(outcome):
    grown, weights = outcome[0]["grown"], outcome[0]["bytes"] / 2**20
    assert all(host < 20 * weights for host, _ in grown), f"{grown} MiB; a forgotten copy each time would be 50 models"
