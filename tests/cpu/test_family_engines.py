"""vLLM samples every family from synced weights, and again from those of an update."""

from __future__ import annotations

import json

import pytest
from proofs import SERVED
from ranks import run_ranks
from runfiles import write_run
from tiny import has_experts

SMALL = {"vllm_max_model_len": 128, "vllm_kv_cache_gib": 0.05}


@pytest.fixture(scope="module")
def distances(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    runs = [
        write_run(folder, tiny(*variant, layers=2), name=variant[0].replace("+", "."), lr=3e-2, **SMALL)
        # all are in one process, and vLLM makes its groups for experts with the first model or never
        for variant in sorted(SERVED, key=lambda variant: not has_experts(variant[0]))
    ]
    run_ranks("engines", 1, folder, *runs, timeout=600)
    return json.loads((folder / "engines.json").read_text())


@pytest.mark.parametrize("name", [name for name, _ in SERVED])
def test_log_probabilities_of_engine_and_trainer_are_one(name, distances):
    found = distances[name.replace("+", ".")]
    assert isinstance(found, list), found
    before, after = found
    assert before <= 1e-3, "after the first sync"
    assert after <= 1e-3, "after a large update and another sync"
