"""Recipes and everything that needs whole runs, trained on a tiny model and resumed from the middle.

All runs share one process and one inference engine.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from ranks import run_ranks

from grpo_hpc.config.library import run_files
from grpo_hpc.observe.metrics import lookup

PLUGINS = Path(__file__).parent / "plugins.py"
RECIPES = {name: file for name, file in run_files().items() if file.parent.name == "recipes"}
OTHERS = {
    "passes": {"batch": {"num_iterations": 2, "steps_per_generation": 2}, "algorithm": {"epsilon": 0.02}},
    "real": {"batch": {"num_iterations": 2}, "algorithm": {"loss_type": "real"}},
    "fipo": {"batch": {"steps_per_generation": 2}, "algorithm": {"loss_type": "fipo"}},
    "moving_reference": {
        "algorithm": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
    },
    "entropy": {"algorithm": {"entropy_coef": 0.05, "top_entropy_quantile": 0.3}},
    "corrected": {
        "batch": {"steps_per_generation": 2},
        "algorithm": {
            "rollout_importance_sampling_mode": "sequence_mask",
            "off_policy_sequence_mask_delta": 1e-4,
            "scale_rewards": "gdpo",
        },
    },
    "dynamic": {
        "algorithm": {"dynamic_sample": True, "max_resample_times": 2},
    },
    "never": {
        "algorithm": {"dynamic_sample": True, "max_resample_times": 1},
    },
}
REWARDS = {"dynamic": "sometimes", "never": "rarely", "dapo": "ends"}
TIMED = ("time/", "throughput/", "memory/")


def tiny_run(folder: Path, model: Path, name: str, sections: dict) -> Path:
    """A small CPU run with the batch and algorithm of ``sections``, as a file."""
    batch = {"micro_batch_size": 2, "global_batch_size": 16, "num_generations": 4}
    chosen = {key: sections.get("batch", {}).get(key, 1) for key in ("steps_per_generation", "num_iterations")}
    run = {
        "name": name,
        "output_dir": str(folder / "runs"),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl")},
        "resources": {"device": "cpu", "nproc_per_node": 1},
        "batch": batch
        | chosen
        | {"train_iters": max(4, chosen["steps_per_generation"] * chosen["num_iterations"] + 2)},
        "rollout": {
            "vllm_dtype": "float32",
            "max_completion_length": 64 if name == "dapo" else 12,  # it learns from those that end by themselves
            "vllm_max_model_len": 96,
        },
        "algorithm": sections["algorithm"],
        "rewards": {"reward_funcs": [f"{PLUGINS}:{REWARDS.get(name, 'early_letters')}"]},
        "optimizer": {"lr": 2e-3},
        "checkpoint": {"save_steps": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    lines = [json.dumps({"prompt": f"Say {n}.", "answer": n}) for n in range(12)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    cases = {name: yaml.safe_load(file.read_text()) for name, file in RECIPES.items()} | OTHERS
    files = [tiny_run(folder, tiny("llama"), name, sections) for name, sections in cases.items()]
    run_ranks("algorithms", 1, folder, *files, timeout=800)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in cases}


@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_it_trains_and_every_metric_is_known(name, results):
    idle = {"dapo": 0.5, "never": 1.0}.get(name, 0.0)  # steps whose completions were all cut off, or alike
    steps = results[name]["whole"]["steps"]
    assert len(steps) >= 4 and (results[name]["moved"] > 1.0 or name == "never")
    for row in steps.values():
        assert all(math.isfinite(value) for value in row.values()), row
        assert [key for key in row if lookup(key) is None] == []
    assert sum(row["grad_norm"] == 0 for row in steps.values()) <= idle * len(steps)


@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_it_resumes_from_the_middle_as_if_never_stopped(name, results):
    whole, rest = results[name]["whole"], results[name]["rest"]
    assert rest["steps"].keys() == {step for step in whole["steps"] if int(step) > len(whole["steps"]) // 2}
    for step, row in rest["steps"].items():
        want = {key: value for key, value in whole["steps"][step].items() if not key.startswith(TIMED)}
        got = {key: value for key, value in row.items() if not key.startswith(TIMED)}
        assert got == pytest.approx(want, rel=1e-6, abs=1e-9), f"step {step}"
    assert rest["groups"] == whole["groups"][len(whole["groups"]) - len(rest["groups"]) :]


def steps_of(results, name):
    return list(results[name]["whole"]["steps"].values())


def test_off_policy_steps_are_off_policy(results):
    ratios = [row["ratio/mean_abs_error"] for row in steps_of(results, "passes")]
    assert ratios[0] == ratios[4] == 0 and min(ratios[1:4]) > 1e-3, "four updates from the first rollout"
    assert len(results["passes"]["whole"]["groups"]) == 2
    assert [row["staleness/mean"] for row in steps_of(results, "passes")] == [0, 1, 2, 3, 0, 1]
    assert max(row["clip_ratio/region_mean"] for row in steps_of(results, "passes")) > 0


def test_kl_and_the_moving_reference(results):
    assert steps_of(results, "rloo")[-1]["kl"] > 0, "reported, though it is in the reward"
    moving = [row["kl"] for row in steps_of(results, "moving_reference")]
    assert moving[0] < 1e-6 < min(moving[1:])
    assert steps_of(results, "reinforce_plus_plus")[3]["kl"] > 0


def test_masks_and_corrections_act(results):
    kept = [row["mask/tokens_kept"] for row in steps_of(results, "entropy")]
    assert all(value == pytest.approx(0.3, abs=0.02) for value in kept)
    assert any(row["mask/stale_completions"] > 0 for row in steps_of(results, "corrected"))
    assert all(
        row["rollout_correction/weight_mean"] == pytest.approx(1, abs=1e-3) for row in steps_of(results, "corrected")
    )


def test_dynamic_sampling_keeps_carries_and_says(results):
    run = results["dynamic"]["whole"]
    rows = [row for row in run["steps"].values() if "dynamic/rounds" in row]
    assert len(rows) == 4 and any(row["dynamic/dropped_groups"] for row in rows)
    carried = [set(positions) for positions in run["carried"]]
    assert any(carried), "some rollout must carry groups over for this to mean anything"
    for before, used in zip(carried, run["groups"][1:], strict=False):
        assert before <= set(used) or len(before) > len(used), "what was kept is used first"
    taken = [position for used in run["groups"] for position in used]
    assert len(taken) == len(set(taken)), "no group is used twice"
    everything = set(taken) | {p for dropped in run["dropped"] for p in dropped} | carried[-1]
    assert everything == set(range(max(everything) + 1)), "no group is lost"
    for row, dropped, later in zip(rows, run["dropped"], run["carried"], strict=True):
        assert row["dynamic/dropped_groups"] == len(dropped)
        assert row["dynamic/carried_completions"] == 4 * len(later)
        assert row["dynamic/filled_groups"] == 0
    assert max(row["staleness/max"] for row in run["steps"].values()) > 0


def test_when_rounds_run_out_the_batch_is_filled_and_it_is_said(results):
    run = results["never"]["whole"]
    assert all(len(used) == 4 for used in run["groups"])
    rows = list(run["steps"].values())
    assert any(row["dynamic/filled_groups"] > 0 and row["dynamic/rounds"] == 2 for row in rows)
    assert any("groups still have equal rewards" in message for message in run["messages"])


def test_dapo_takes_the_mean_over_all_tokens_that_were_not_cut_off(results):
    for row in steps_of(results, "dapo")[:1]:
        assert row["completions/clipped_ratio"] > 0
        assert 0 < row["tokens/scored"] < row["completions/tokens"]
