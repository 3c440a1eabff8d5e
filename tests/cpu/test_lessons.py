"""One objective of each kind: two data-parallel, tensor-parallel and pipeline ranks give the gradients of one rank.

The step is the second of a rollout's second pass, cut into micro-batches of another size in every layout.
"""

from __future__ import annotations

import ast

import pytest
from ranks import run_ranks
from runfiles import write_run
from safetensors import safe_open
from safetensors.torch import load_file

KINDS = {
    "token": {
        "beta": 0.1,
        "kl_estimator": "k2",
        "entropy_coef": 0.02,
        "rollout_importance_sampling_mode": "token_truncate",
        "rollout_importance_sampling_threshold": 1.1,
        "delta": 1.3,
        "epsilon": 0.1,
    },
    "completion": {
        "importance_sampling_level": "sequence",
        "epsilon": 0.03,
        "rollout_importance_sampling_mode": "sequence_mask",
        "rollout_importance_sampling_threshold": 1.05,
        "off_policy_sequence_mask_delta": 0.05,
    },
    "quantile": {"loss_type": "dapo", "top_entropy_quantile": 0.4, "overlong_filter": True, "epsilon": 0.1},
    "future": {"loss_type": "fipo", "delta": 1.3, "scale_rewards": "batch"},
    "group": {"loss_type": "real", "beta": 0.05, "overlong_filter": True},
    "in_reward": {"loss_type": "cispo", "epsilon_high": 1.1, "beta": 0.1, "kl_in_reward": True},
}
LAYOUTS = {
    "dp2": {"micro_batch_size": 2},
    "tp2": {"tensor_model_parallel_size": 2, "micro_batch_size": 1},
    "pp2": {"pipeline_model_parallel_size": 2, "micro_batch_size": 2},
}


def run_file(folder, model, kind, layout, **keys):
    return write_run(
        folder,
        model,
        name=f"{kind}-{layout}",
        steps_per_generation=2,
        num_iterations=2,
        use_distributed_optimizer=False,
        **(KINDS[kind] | keys),
    )


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    """Gradients and metrics by kind and layout."""
    folder, model = tmp_path_factory.mktemp("lessons"), tiny("qwen3", False)
    alone = [run_file(folder, model, kind, "one", micro_batch_size=4) for kind in KINDS]
    run_ranks("lessons", 1, folder, *alone)
    both = [
        run_file(folder, model, kind, layout, nproc_per_node=2, **keys)
        for layout, keys in LAYOUTS.items()
        for kind in KINDS
    ]
    run_ranks("lessons", 2, folder, *both, timeout=600)
    return {path.stem: read(path) for path in folder.glob("*.safetensors")}


def read(path):
    with safe_open(path, "pt") as file:
        return load_file(path), {key: eval_number(value) for key, value in file.metadata().items()}


def eval_number(text):
    return float(text) if text in ("inf", "-inf") else ast.literal_eval(text)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_layout_equals_one_rank(kind, layout, found):
    want, want_values = found[f"{kind}-one"]
    got, values = found[f"{kind}-{layout}"]
    assert values == pytest.approx(want_values, rel=2e-5, abs=1e-7)
    for name, value in got.items():
        assert want[name].any(), name
        difference = (value - want[name]).norm() / want[name].norm()
        assert difference <= 2e-5, f"{name} differs by {difference:.2e} relative"


def test_what_makes_each_kind_special_happened(found):
    values = {kind: found[f"{kind}-one"][1] for kind in KINDS}
    assert 0 < values["token"]["rollout_correction/outside_bounds"] < 1 and values["token"]["kl"] > 0
    assert 0 < values["completion"]["mask/stale_completions"] < 1
    assert 0 < values["completion"]["rollout_correction/outside_bounds"] < 1
    assert 0.3 < values["quantile"]["mask/tokens_kept"] < 0.5 and values["quantile"]["threshold"] > 0
    assert values["quantile"]["trained"] < 16, "filtered completions are left out of forward and backward"
    assert values["in_reward"]["kl"] > 0, "reported, though it is in the reward"
    assert values["in_reward"]["clip_ratio/high_mean"] > 0
