from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from grpo_hpc.config import dump_run, load_run
from grpo_hpc.errors import CheckpointError, ConfigError, PlanError
from grpo_hpc.plan import hardware
from grpo_hpc.plan.html import page_of
from grpo_hpc.plan.make import Plan, make_plan
from grpo_hpc.plan.show_plan import show_plan, show_side_by_side
from grpo_hpc.plan.site import Site, hardware_named
from grpo_hpc.runs.run_dir import RunDir
from tests.unit.plan.planning import CONFIGS, SMOLLM2, quickstart, shipped


def shown(*plans: Plan, explain: tuple[str, ...] = ()) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80)
    if len(plans) == 1:
        show_plan(plans[0], console, explain)
    else:
        show_side_by_side(plans, console)
    return out.getvalue()


def test_indivisible_models_are_refused_with_nearest_sizes() -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(quickstart("nproc_per_node=8", "tensor_model_parallel_size=8"))
    text = str(caught.value)
    assert "9 query heads / 8, remainder 1" in text
    assert "nearest values: 3" in text
    with pytest.raises(PlanError, match="30 / 4, remainder 2") as caught:
        make_plan(quickstart("nproc_per_node=4", "pipeline_model_parallel_size=4"))
    assert "nearest values: 3 or 5" in str(caught.value)


def test_a_plan_without_the_model_says_so() -> None:
    plan = make_plan(quickstart("model.config=null"))
    assert plan.estimate is None
    assert "no memory estimate: no-such-folder/config.json is not on this machine" in plan.warnings[0]
    assert "no memory estimate" in shown(plan)


def test_what_ms_swift_would_refuse_is_a_note() -> None:
    sizes = (
        "nodes=32",
        "global_batch_size=512",
        "num_generations=16",
        "micro_batch_size=1",
        "generation_batch_size=512",
    )
    plan = make_plan(shipped("qwen3_8b", *sizes, "steps_per_generation=null"))
    assert plan.schedule.dp == 64 and plan.estimate is not None
    (note,) = [warning for warning in plan.warnings if "ms-swift" in warning]
    assert note.endswith("512 / 16 / (64 * 1) = 32 / 64, remainder 32")
    assert not any("ms-swift" in warning for warning in make_plan(quickstart()).warnings)


@pytest.fixture
def hundred_rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "2 + 2", "answer": 4}\n' * 100)
    return file


def test_epochs_become_steps_where_the_rows_are_read(hundred_rows: Path, tmp_path: Path) -> None:
    sizes = ["num_generations=8", "global_batch_size=64", "steps_per_generation=1"]
    plan = make_plan(quickstart("train_iters=null", "num_train_epochs=3", f"data.train={hundred_rows}", *sizes))
    assert plan.train_iters == plan.run.batch.steps == 100 * 8 * 3 // 64
    assert plan.schedule.rollouts == 37
    assert "num_train_epochs 3: rows * 8 * 3 // 64 optimizer steps: train_iters 37" in plan.warnings
    (tmp_path / "resolved.yaml").write_text(dump_run(plan.run))
    resolved = load_run(tmp_path / "resolved.yaml").batch
    assert (resolved.train_iters, resolved.num_train_epochs) == (37, None), "a resume counts no rows again"


def test_epochs_over_rows_that_are_elsewhere_are_planned_and_not_started(tmp_path: Path) -> None:
    run = quickstart("train_iters=null", "num_train_epochs=3", "data.train=nowhere.jsonl", f"output_dir={tmp_path}")
    plan = make_plan(run)
    assert plan.train_iters is None and json.loads(json.dumps(plan.to_dict()))["schedule"]["rollouts"] is None
    assert "Batch schedule: 3 epochs" in shown(plan, explain=("batch",))
    assert "nowhere.jsonl is not on this machine" in plan.warnings[0]
    with pytest.raises(ConfigError, match=r"how many optimizer steps batch\.num_train_epochs are is not known"):
        RunDir.create(plan.run, plan)
    assert list(tmp_path.iterdir()) == []


def test_epochs_that_are_shorter_than_the_warm_up_are_refused(hundred_rows: Path) -> None:
    keys = ["train_iters=null", "num_train_epochs=1", "num_generations=8", "global_batch_size=64", "lr_warmup_iters=12"]
    with pytest.raises(ConfigError, match=r"(?s)1 over 100 rows.*less than batch.train_iters = 12, got 12"):
        make_plan(quickstart(*keys, f"data.train={hundred_rows}"))


@pytest.mark.parametrize(
    ("overrides", "said", "way"),
    [
        (["vllm_max_model_len=9000"], "vllm_max_model_len = 9000 is beyond", "at most 8192"),
        (["data.max_length=null", "max_completion_length=8192"], "one token of a prompt", "length at most 8191."),
        (["data.max_length=300", "max_completion_length=8000"], "300 + rollout", "length at most 192 or rollout"),
        (["data.max_length=9000", "max_completion_length=8192"], "= 17192 tokens", "less of both"),
    ],
)
def test_sequences_beyond_the_model_are_refused(overrides: list[str], said: str, way: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(quickstart("vllm_max_model_len=null", *overrides))
    assert said in caught.value.message and way in str(caught.value.hint)


def test_a_limit_that_is_short_for_a_rollout_is_a_note() -> None:
    usual = make_plan(shipped("qwen3_8b"))
    assert not any("rollout_timeout_minutes" in warning for warning in usual.warnings)
    assert usual.estimate is not None and usual.estimate.times is not None
    minutes = usual.estimate.times.seconds("rollout") / 60
    short = make_plan(shipped("qwen3_8b", f"rollout_timeout_minutes={1.9 * minutes}"))
    (note,) = [warning for warning in short.warnings if "rollout_timeout_minutes" in warning]
    assert note.endswith(f"give at least {math.ceil(2 * minutes)}")


def test_what_is_not_counted_of_episodes_is_a_note() -> None:
    episodes = make_plan(shipped("quickstart_tools")).warnings
    assert [text for text in episodes if text.startswith("times are those of one turn")]
    assert not any("one turn" in text for text in make_plan(shipped("quickstart")).warnings)


def test_a_step_longer_than_the_time_to_save_is_a_note() -> None:
    cfg = shipped("qwen3_8b")
    estimate = make_plan(cfg).estimate
    assert estimate is not None and estimate.times is not None
    times = estimate.times
    longest = times.seconds("logprob") + times.seconds("train") / times.steps + times.seconds("offload")

    def notes(warned_s: int) -> list[str]:
        return [text for text in make_plan(cfg, site=Site(warned_s=warned_s)).warnings if "save_before_s" in text]

    assert not notes(math.ceil(longest))
    (note,) = notes(int(longest))
    assert note.startswith(f"one optimizer step is estimated to take {longest:,.0f} s")
    assert f"give at least {math.ceil(2 * longest):,} s" in note


def test_a_model_folder_comes_before_the_planning_config(tmp_path: Path) -> None:
    config = json.loads(SMOLLM2.read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = make_plan(quickstart(f"model.path={tmp_path}"))
    assert plan.shape is not None
    assert plan.shape.layers == 2


def test_quantised_weights_are_refused_before_anything_is_queued(tmp_path: Path) -> None:
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(json.loads(SMOLLM2.read_text()) | quantised))
    with pytest.raises(CheckpointError, match=r"quantised \(gptq\)") as caught:
        make_plan(quickstart(f"model.path={tmp_path}"))
    assert "remove quantization_config from config.json" in str(caught.value.hint)


def test_missing_files_are_errors() -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.json"):
        make_plan(quickstart("model.config=nowhere.json"))
    with pytest.raises(ConfigError, match="no hardware profile 'h1000'") as caught:
        make_plan(shipped("qwen3_8b", "gpu=h1000"))
    assert "Did you mean h100?" in str(caught.value.hint)


def test_a_hardware_profile_is_read_as_a_run_file_is(tmp_path: Path) -> None:
    shipped_profile = (Path(hardware.__file__).parent / "hardware" / "h100.yaml").read_text()
    (tmp_path / "own.yaml").write_text(f"{shipped_profile}memory_gib: 010\nmemory_gb: 80\n")
    with pytest.raises(ConfigError) as caught:
        make_plan(shipped("qwen3_8b", f"gpu={tmp_path / 'own.yaml'}"))
    last = len(shipped_profile.splitlines()) + 1
    said = str(caught.value)
    assert f"is given again on line {last}" in said
    assert f"memory_gb (line {last + 1}): is unknown; did you mean memory_gib?" in said
    assert "memory_gib (line 2): must be a number above 0, got '010'" in said


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["steps_per_generation=3", "train_iters=40"], "the last rollout serves 1 of 3 steps"),
        (["vllm_max_model_len=null"], "counted for sequences of 8192 tokens"),
        (["nodes=3", "nproc_per_node=1", "tensor_model_parallel_size=3", "global_batch_size=96"], "reach over 3 nodes"),
    ],
)
def test_warnings(overrides: list[str], expected: str) -> None:
    assert make_plan(quickstart()).warnings == ()
    assert any(expected in warning for warning in make_plan(quickstart(*overrides)).warnings)


@pytest.mark.parametrize(
    ("overrides", "verdict", "why"),
    [
        ([], "fits", None),
        (["vllm_gpu_memory_utilization=0.02"], "does not fit", "KV cache"),
        (["vllm_gpu_memory_utilization=null", "vllm_kv_cache_gib=0.05"], "does not fit", "rollout.vllm_kv_cache_gib"),
        (["vllm_gpu_memory_utilization=null", "vllm_kv_cache_gib=20"], "fits", None),
        (
            ["gpu=a100-40", "tensor_model_parallel_size=1", "sequence_parallel=false"],
            "does not fit",
            "the train phase needs",
        ),
    ],
)
def test_verdicts(overrides: list[str], verdict: str, why: str | None) -> None:
    estimate = make_plan(shipped("qwen3_8b", *overrides)).estimate
    assert estimate is not None
    assert estimate.verdict == verdict, estimate.troubles
    assert why is None or any(why in trouble for trouble in estimate.troubles)


def test_the_plan_gives_the_cache_what_a_rollout_needs_or_what_is_left() -> None:
    """Of 8 GPUs each engine gets 32 completions of 9,216 tokens, at 144 KiB a token."""
    open_ended = shipped("qwen3_8b", "vllm_gpu_memory_utilization=null", "gpu=h100")
    plan = make_plan(open_ended)
    assert make_plan(plan.run).run is plan.run
    assert plan.run.rollout.vllm_kv_cache_gib == pytest.approx(32 * 9216 * 144 / 2**20, rel=0.01)
    assert open_ended.rollout.vllm_kv_cache_gib is None
    estimate = plan.estimate
    assert estimate is not None and estimate.verdict == "fits" and estimate.memory.kv_tokens >= 32 * 9216

    crowded = make_plan(shipped("qwen3_8b", "vllm_gpu_memory_utilization=null", "sleep_level=0", "gpu=h100")).estimate
    assert crowded is not None and crowded.hardware is not None
    cache = next(t.bytes for use in crowded.memory.phases for t in use.terms if t.name == "KV cache")
    assert cache < 32 * 9216 * 144 * 2**10
    assert crowded.memory.peak.total <= 0.9 * crowded.hardware.memory and crowded.verdict == "fits"


def test_a_server_has_a_gpu_of_its_own() -> None:
    """There is room for all that it gets, or for as much as its weights leave."""
    plan = make_plan(shipped("qwen3_8b_server", "vllm_gpu_memory_utilization=null", "gpu=h100"))
    estimate = plan.estimate
    assert estimate is not None and estimate.verdict == "fits"
    share = plan.schedule.completions_per_rank_per_rollout
    (cache,) = (term.bytes for term in estimate.memory.servers if term.name == "KV cache")
    room = 0.9 * estimate.hardware.memory - sum(term.bytes for term in estimate.memory.servers) + cache
    assert cache == pytest.approx(min(share * 9216 * 144 * 2**10, room), rel=0.01)


@pytest.mark.parametrize(
    "overrides", [["gpu=h100", "vllm_kv_cache_gib=3"], ["gpu=h100", "vllm_gpu_memory_utilization=0.5"], []]
)
def test_what_is_given_is_not_decided_nor_for_a_gpu_that_nobody_named(overrides: list[str]) -> None:
    cfg = shipped("qwen3_8b", "vllm_gpu_memory_utilization=null", *overrides)
    assert make_plan(cfg).run is cfg


def test_shipped_runs_fit_their_hardware() -> None:
    for file in sorted(CONFIGS.glob("*.yaml")):
        estimate = make_plan(shipped(file.stem)).estimate
        assert estimate is not None, file
        assert estimate.verdict == "fits", (file, estimate.troubles)


def test_to_dict_is_json_and_agrees_with_the_plan() -> None:
    plan = make_plan(shipped("qwen3_30b_a3b"))
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["schedule"]["prompts_per_rollout"] == 1
    assert values["topology"]["ranks"][5] == {
        "rank": 5, "node": 0, "tp": 1, "cp": 0, "dp": 0, "pp": 1, "etp": 0, "ep": 1, "edp": 0
    }  # fmt: skip
    assert values["model"]["parameters"] == 30_532_122_624
    assert plan.estimate is not None
    peak = values["estimate"]["memory"]["peak"]
    assert peak["bytes"] == sum(term["bytes"] for term in values["estimate"]["memory"]["phases"][peak["phase"]])
    assert values["estimate"]["time"]["cycle"] == pytest.approx(
        sum(part["seconds"] for parts in values["estimate"]["time"]["phases"].values() for part in parts)
    )


def documented(values: object, path: str = "") -> set[str]:
    """Dotted names of all values; lists are written as their elements."""
    if isinstance(values, list):
        return set().union(*(documented(value, path) for value in values)) if values else {path}
    if isinstance(values, dict) and path.rsplit(".", 1)[-1] not in ("phases", "nodes_spanned"):
        return set().union(*(documented(value, f"{path}.{key}".lstrip(".")) for key, value in values.items()))
    if isinstance(values, dict):
        return set().union(*(documented(value, f"{path}.*") for value in values.values()))
    return {path}


def test_the_page_has_every_name_of_the_json() -> None:
    page = (CONFIGS.parent / "docs" / "planner.md").read_text()
    for name in ("qwen3_30b_a3b", "qwen3_8b_server"):
        for path in documented(make_plan(shipped(name)).to_dict()):
            assert f"`{path}`" in page, f"docs/planner.md does not mention {path}"


def test_tables_fit_80_columns_and_name_prompts_and_completions() -> None:
    text = shown(make_plan(quickstart("nproc_per_node=32", "micro_batch_size=1", "global_batch_size=256")))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "8 completions per prompt" in text
    assert "micro 1 * dp 32 * accumulation 8" in text
    assert "…" not in text


def test_a_token_budget_is_shown_as_one() -> None:
    """Not as micro-batches of one completion, which is what the other key stands at."""
    plan = make_plan(quickstart("micro_batch_size=null", "max_tokens_per_micro_batch=4096"))
    text = " ".join(shown(plan, explain=("batch",)).split())
    assert "up to 4,096 tokens, about" in text and "accumulation" not in text
    assert "in passes of up to 4,096 tokens (max_tokens_per_micro_batch)" in text


def test_explanations() -> None:
    plan = make_plan(shipped("qwen3_8b_server"))
    text = " ".join(shown(plan, explain=("batch", "memory", "time")).split())
    assert "512 completions (generation_batch_size)" in text
    assert "8 vLLM engines share them: 512 / 8 = 64 completions each" in text
    assert "cut into 512 / 256 = 2 optimizer steps" in text
    for part in ("Memory of the sync phase", "Memory of a vLLM server's GPU", "Time, part by part", "pipeline" * 0):
        assert part in text
    assert "node 1: vLLM" in text


def test_two_plans_side_by_side() -> None:
    text = shown(make_plan(shipped("qwen3_8b")), make_plan(shipped("qwen3_8b_server")))
    assert "qwen3_8b_server" in text
    assert "tokens/s per GPU" in text


def test_the_page_is_whole_and_escapes_names(tmp_path: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    cfg = shipped("qwen3_30b_a3b").model_copy(update={"name": "<b>&co"})
    (tmp_path / "plan.html").write_text(page_of([make_plan(cfg)]))
    page = (tmp_path / "plan.html").read_text()
    assert "<b>&co" not in page
    assert "&lt;b&gt;&amp;co" in page
    assert "://" not in page and "<script" not in page
    for svg in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    assert page.count("<rect") > 8 + 20


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("l40s", "l40s"),
        ("H100", "h100"),
        ("nvidia_h100_80gb_hbm3", "h100"),
        ("NVIDIA-A100-SXM4-80GB", "a100-80"),
        ("gb200", "gb200"),
        ("a100", None),  # 40 or 80 GB
        ("v100", None),
    ],
)
def test_a_gpu_is_known_by_the_name_that_slurm_gives_it(gpu: str, name: str | None) -> None:
    assert hardware_named(gpu) == name


def test_a_run_is_planned_for_the_gpus_of_its_cluster() -> None:
    cfg = shipped("qwen3_8b")
    site = Site("mysite", gpu="l40s")
    open_ended = cfg.model_copy(
        update={"resources": cfg.resources.model_validate(cfg.resources.model_dump(exclude={"gpu"}))}
    )
    plan = make_plan(open_ended, site=site)
    assert plan.run.resources.gpu == "l40s" and plan.estimate is not None
    assert plan.estimate.hardware is not None and plan.estimate.hardware.name.startswith("L40S")
    assert not any("planned for" in warning for warning in plan.warnings)
    other = make_plan(shipped("qwen3_8b", "gpu=h100"), site=site)
    assert other.run.resources.gpu == "h100"
    assert any("set resources.gpu to l40s" in warning for warning in other.warnings)
    unknown = make_plan(open_ended, site=Site("mysite", gpu="a100"))
    assert any("a100-40, a100-80" in warning for warning in unknown.warnings)


PUBLISHED = json.loads((Path(__file__).parents[1] / "models" / "published.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_configuration_can_be_planned_with(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    keys = [f"model.config={tmp_path / 'config.json'}", "rollout.vllm_max_model_len=2048"]
    keys += ["rollout.max_completion_length=1024", "parallel.tensor_model_parallel_size=2"]
    plan = make_plan(shipped("qwen3_8b", *keys))
    assert plan.shape is not None and plan.estimate is not None
    assert plan.shape.family == PUBLISHED[name]["model_type"]
