from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from grpo_hpc.config import RunConfig, load_run
from grpo_hpc.errors import CheckpointError, PlanError
from grpo_hpc.models.shape import read_shape
from grpo_hpc.plan.make import Plan, make_plan
from grpo_hpc.plan.memory import parameters_per_rank
from grpo_hpc.plan.show import show_plan

CONFIGS = Path(__file__).parents[3] / "configs"
SMOLLM2 = CONFIGS / "models" / "SmolLM2-135M-Instruct.json"


def quickstart(*overrides: str) -> RunConfig:
    elsewhere = ["model.path=no-such-folder", f"model.config={SMOLLM2}"]
    return load_run(CONFIGS / "quickstart.yaml", [*elsewhere, *overrides])


def shown(plan: Plan) -> str:
    out = io.StringIO()
    show_plan(plan, Console(file=out, width=80))
    return out.getvalue()


def sizes(plan: Plan) -> dict[str, int]:
    return {term.name: term.bytes for term in plan.memory}


def test_smollm2_has_the_parameters_that_transformers_counts() -> None:
    assert read_shape(SMOLLM2).parameters() == 134_515_008


def test_state_bytes_in_fp32_with_and_without_the_distributed_optimizer() -> None:
    count = 134_515_008
    cut = sizes(make_plan(quickstart()))
    whole = sizes(make_plan(quickstart("use_distributed_optimizer=false")))
    assert cut["weights"] == cut["gradients"] == 4 * count
    assert (cut["optimizer"], whole["optimizer"]) == (4 * count, 8 * count)


def test_state_bytes_in_bf16_on_gpus() -> None:
    plan = make_plan(quickstart("device=cuda", "dtype=bfloat16", "nproc_per_node=4", "micro_batch_size=2"))
    found, count = sizes(plan), 134_515_008
    assert (found["weights"], found["gradients"], found["optimizer"]) == (2 * count, 4 * count, 3 * count)
    # 16 completions of 128 tokens; keys and values of 30 layers, 3 heads, 64 wide, 2 bytes
    assert found["KV cache"] == 16 * 128 * 2 * 30 * 3 * 64 * 2


def test_reference_model_is_counted_only_with_kl() -> None:
    assert "reference model" not in sizes(make_plan(quickstart()))
    with_kl = sizes(make_plan(quickstart("beta=0.01")))
    assert with_kl["reference model"] == with_kl["weights"]


def test_every_formula_gives_its_bytes() -> None:
    for term in make_plan(quickstart("beta=0.1")).memory:
        arithmetic = term.formula.split(" (vllm")[0].replace(",", "").replace(" GiB", f" * {2**30}")
        for word in ("parameters", "tokens", "layers", "entries", "dp", "tp", "pp", "B"):
            arithmetic = arithmetic.replace(f" {word}", " ").replace(f"{word} ", "")
        assert eval(arithmetic) == pytest.approx(term.bytes, rel=1e-6), term


def test_stages_hold_all_layers_and_both_embeddings() -> None:
    shape = read_shape(SMOLLM2)
    half = parameters_per_rank(shape, tp=1, pp=2)
    assert half == 15 * shape.layer_parameters() + shape.embedding_parameters() + shape.hidden
    assert parameters_per_rank(shape, tp=3, pp=1) == shape.parameters() // 3


def test_indivisible_models_are_refused_with_nearest_sizes() -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(quickstart("nproc_per_node=8", "tp=8".replace("tp", "tensor_model_parallel_size")))
    text = str(caught.value)
    assert "9 query heads / 8, remainder 1; 3 key/value heads / 8, remainder 3" in text
    assert "nearest values: 3" in text
    with pytest.raises(PlanError, match="30 layers / 4, remainder 2") as caught:
        make_plan(quickstart("nproc_per_node=4", "pipeline_model_parallel_size=4"))
    assert "nearest values: 3 or 5" in str(caught.value)


def test_a_plan_without_the_model_says_so() -> None:
    plan = make_plan(quickstart("model.config=null"))
    assert plan.memory == ()
    assert "no memory estimate: no-such-folder/config.json is not on this machine" in plan.warnings[0]
    assert "no memory estimate" in shown(plan)


def test_a_model_folder_comes_before_the_planning_config(tmp_path: Path) -> None:
    config = json.loads(SMOLLM2.read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = make_plan(quickstart(f"model.path={tmp_path}"))
    assert plan.shape is not None
    assert plan.shape.layers == 2


def test_a_missing_planning_config_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.json"):
        make_plan(quickstart("model.config=nowhere.json"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["tuner_type=lora"], "the trainer trains all parameters"),
        (["steps_per_generation=3", "train_iters=40"], "the last rollout serves 1 of 3 steps"),
        (["vllm_max_model_len=9000"], "beyond the model's longest sequence, 8192"),
        (["vllm_max_model_len=null"], "counted for sequences of 8192 tokens"),
        (["nodes=3", "nproc_per_node=1", "tensor_model_parallel_size=3", "global_batch_size=96"], "reach over 3 nodes"),
    ],
)
def test_warnings(overrides: list[str], expected: str) -> None:
    assert make_plan(quickstart()).warnings == ()
    assert any(expected in warning for warning in make_plan(quickstart(*overrides)).warnings)


def test_to_dict_is_json_and_agrees_with_the_plan() -> None:
    plan = make_plan(quickstart())
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["schedule"]["prompts_per_rollout"] == 8
    assert values["topology"]["ranks"][1] == {"rank": 1, "node": 0, "tp": 0, "cp": 0, "dp": 1, "pp": 0}
    assert values["model"]["parameters"] == 134_515_008
    assert [term["name"] for term in values["memory_per_rank"]] == [term.name for term in plan.memory]


def test_tables_fit_80_columns_and_name_prompts_and_completions() -> None:
    text = shown(make_plan(quickstart("nproc_per_node=32", "micro_batch_size=1", "global_batch_size=256")))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "8 completions per prompt" in text
    assert "micro 1 * dp 32 * accumulation 8" in text
    assert "and 16 more ranks" in text
    assert "…" not in text
