"""What the keys of sampling mean, by vLLM's log-probabilities beside the formulas on the logits of transformers."""

from __future__ import annotations

import json
import re

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run

from grpo_hpc.rollout.engine_arguments import unknown_arguments

SETTINGS = {
    "plain": {},
    "min_p": {"min_p": 0.3},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.8},
    "all": {"min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": -0.3},
    "structured_outputs_regex": {"structured_outputs_regex": "(ab|c)[0-9]{2}"},
    "stop": {"stop": [*"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", "ab"]},
    "stop_token_ids": {"stop_token_ids": list(range(40, 72))},
}
SHAPING = ("plain", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "all")
LIMIT = 24


@pytest.fixture(scope="module")
def sampled(tiny, tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, model = tmp_path_factory.mktemp("sampling"), tiny("qwen2")
    changed = {"max_completion_length": LIMIT, "vllm_engine_kwargs": {"enable_prefix_caching": False}}
    run = write_run(folder, model, **changed)
    run_ranks("sampling", 1, run, folder, json.dumps(SETTINGS))
    found = json.loads((folder / "result.json").read_text())
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return found, reference, AutoTokenizer.from_pretrained(model)


def expected(logits, prompt, sampled, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0):
    """Log-probabilities of the next token: penalties on the logits, then what ``min_p`` leaves of them."""
    logits = logits.clone()
    for token in {*prompt, *sampled}:
        logits[token] *= repetition_penalty if logits[token] < 0 else 1 / repetition_penalty
    for token in set(sampled):
        logits[token] -= presence_penalty + frequency_penalty * sampled.count(token)
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < min_p * probabilities.max(), float("-inf")).log_softmax(-1)


@pytest.mark.parametrize("name", SHAPING)
def test_the_engine_samples_from_the_distribution_that_the_keys_describe(name, sampled):
    found, model, _ = sampled
    for prompt, (tokens, logprobs, _) in zip(found["prompts"], found[name], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            want = expected(logits[place], prompt, tokens[:place], **SETTINGS[name])[token]
            assert logprob == pytest.approx(float(want), abs=1e-3)
    assert name == "plain" or found[name] != found["plain"]


def test_a_completion_matches_the_regular_expression(sampled):
    found, _, tokenizer = sampled
    for tokens, _, reason in found["structured_outputs_regex"]:
        assert reason == "stop"
        assert re.fullmatch(SETTINGS["structured_outputs_regex"]["structured_outputs_regex"], text(tokenizer, tokens))


def test_a_completion_ends_with_the_first_text_that_stops_it(sampled):
    found, _, tokenizer = sampled
    reasons = set()
    for (tokens, _, reason), (plain, *_) in zip(found["stop"], found["plain"], strict=True):
        assert tokens == plain[: len(tokens)], "until it ends nothing changes"
        said = text(tokenizer, tokens)
        held = [said.find(word) for word in SETTINGS["stop"]["stop"] if word in said]
        assert all(said[at:] in SETTINGS["stop"]["stop"] for at in held)
        assert reason == "stop" if held else len(tokens) == len(plain)
        reasons.add(bool(held))
    assert True in reasons, "no completion was stopped, and the test proves nothing"


def test_a_completion_ends_with_the_first_token_that_stops_it(sampled):
    found, _, _ = sampled
    stops = set(SETTINGS["stop_token_ids"]["stop_token_ids"])
    for (tokens, _, reason), (plain, *_) in zip(found["stop_token_ids"], found["plain"], strict=True):
        first = next((place for place, token in enumerate(plain) if token in stops), None)
        assert tokens == (plain if first is None else plain[: first + 1])
        assert first is None or reason == "stop"
    assert found["stop_token_ids"] != found["plain"]


def test_an_argument_that_vllm_does_not_know_is_named():
    assert unknown_arguments([]) is None and unknown_arguments(["block_size", "kv_cache_dtype"]) is None
    said = unknown_arguments(["block_size", "enable_prefix_cachin"])
    assert said is not None and "has no 'enable_prefix_cachin'; it has enable_prefix_caching" in said


def text(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True)
