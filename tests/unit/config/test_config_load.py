from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from grpo_hpc.config import RunConfig, dump_run, load_run
from grpo_hpc.config.sections import SECTION_OF, SECTIONS, TOP_LEVEL
from grpo_hpc.errors import ConfigError
from grpo_hpc.redaction import looks_secret

SMALL = """
name: small
model: {path: m, dtype: float32}
data: {train: t.jsonl}
resources: {device: cpu, nproc_per_node: 2}
batch: {train_iters: 4}
rewards: {reward_funcs: [exact_number]}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def mistakes(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    return str(caught.value)


def test_defaults_and_overrides_with_and_without_section(run_file: Path) -> None:
    cfg = load_run(run_file, ["batch.global_batch_size=32", "lr=1e-5", "seed=7", "eval=e.jsonl"])
    assert (cfg.batch.global_batch_size, cfg.optimizer.lr, cfg.seed) == (32, 1e-5, 7)
    assert cfg.data.eval == "e.jsonl"
    assert cfg.batch.num_generations == 8


def test_null_takes_out_what_has_a_default_of_its_own(run_file: Path) -> None:
    """A key that stands in the way of another can go, though null is no value of it."""
    tokens = ["max_tokens_per_micro_batch=4096", "vllm_max_model_len=1024"]
    cfg = load_run(run_file, ["micro_batch_size=2", "micro_batch_size=null", *tokens])
    assert (cfg.batch.micro_batch_size, cfg.batch.max_tokens_per_micro_batch) == (1, 4096)
    assert "micro_batch_size=null takes it out" in mistakes(run_file, "micro_batch_size=2", *tokens)
    assert "batch.train_iters" in mistakes(run_file, "train_iters=null")
    assert load_run(run_file, ["seed=3", "seed=null"]).seed == RunConfig.model_fields["seed"].default


def test_the_last_override_counts_and_null_unsets(run_file: Path) -> None:
    cfg = load_run(run_file, ["save_steps=3", "save_steps=5", "eval=e", "data.eval=null"])
    assert cfg.checkpoint.save_steps == 5
    assert cfg.data.eval is None


def test_leaf_names_are_unique_over_all_sections() -> None:
    leaves = [*TOP_LEVEL, *SECTIONS, *(key for section in SECTIONS.values() for key in section.model_fields)]
    assert [name for name, count in Counter(leaves).items() if count > 1] == []


def test_every_number_has_bounds_and_every_key_a_description() -> None:
    for section in SECTIONS.values():
        for key, field in section.model_fields.items():
            assert field.description, key
            if field.annotation in (int, float, int | None, float | None):
                assert field.metadata, f"{key} has no bounds"


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", ".1e-4"])
def test_exponents_are_numbers(run_file: Path, text: str) -> None:
    assert load_run(run_file, [f"lr={text}"]).optimizer.lr == pytest.approx(1e-5)


@pytest.mark.parametrize("name", ["1e5", "no", "010", "2024-01-01", "x", "1_000", "true-ish"])
def test_dump_loads_back_equal(run_file: Path, tmp_path: Path, name: str) -> None:
    cfg = load_run(run_file, [f"name='{name}'", "lr_decay_style=cosine", "min_lr=1e-7", "epsilon_high=0.28"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_run(cfg))
    assert load_run(again) == cfg
    assert load_run(again).name == name


def test_dump_of_a_cuda_run_loads_back_equal(run_file: Path, tmp_path: Path) -> None:
    cfg = load_run(run_file, ["device=cuda", "dtype=bfloat16", "vllm_gpu_memory_utilization=0.4"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_run(cfg))
    assert load_run(again) == cfg


def test_all_mistakes_are_shown_together_with_their_place(run_file: Path) -> None:
    run_file.write_text(SMALL + "optimizer:\n  learning_rat: 1\n  lr: -1\n")
    text = mistakes(run_file, "batch.micro_batch_siz=2", "temperature=hot", "train_iters=1e2")
    assert "5 mistakes" in text
    assert "optimizer.learning_rat (line 9): unknown key" in text
    assert "optimizer.lr (line 10): must be greater than 0, got -1" in text
    assert "batch.micro_batch_siz (override): unknown key; did you mean micro_batch_size?" in text
    assert "rollout.temperature (override): must be a number, got 'hot'" in text
    assert "batch.train_iters (override): must be a whole number, got 100.0; write 100" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("batch.lr=1", "belongs in the section 'optimizer': write optimizer.lr"),
        ("data.seed=1", "belongs at the top level"),
        ("lrr=1", "did you mean optimizer.lr?"),
        ("tp=2", "did you mean parallel.tensor_model_parallel_size?"),
        ("vpp=2", "did you mean parallel.virtual_pipeline_model_parallel_size?"),
        ("device=gpu", "must be cpu or cuda, got 'gpu'"),
        ("shuffle=yes", "must be true or false, got 'yes'"),
        ("micro_batch_size=true", "must be a whole number, got true"),
        ("lr=.nan", "must be a finite number"),
        ("num_generations=1", "must be at least 2, got 1"),
        ("reward_funcs=exact_number", "must be a list, got 'exact_number'; write [exact_number]"),
        ("reward_funcs=[]", "must not be empty"),
        ("batch=3", "batch is a section; override one of its keys"),
        ("btach.lr=3", "no section 'btach'"),
        ("lr", "an override is written key=value"),
        ("lr=[1", "the value is not YAML"),
        ("name=a/b", "letters, digits and . _ -"),
        ("use_vllm=false", "rollouts always come from vLLM"),
        ("rollout.use_vllm=false", "rollouts always come from vLLM"),
        ("move_model_batches=4", "streamed to vLLM one tensor at a time"),
        ("save_interval=4", "is called checkpoint.save_steps here"),
        ("max_epochs=4", "is called batch.num_train_epochs here"),
        ("train_iters=null", "batch.train_iters (override): is required: optimizer steps of the whole run; or give"),
        ("num_train_epochs=4", "has no meaning beside batch.train_iters; give one of them"),
        ("dtype=bfloat16", "bfloat16 training needs CUDA"),
        ("vllm_gpu_memory_utilization=0.5", "has no meaning on a CPU; the size of the KV cache"),
        ("vllm_enforce_eager=true", "has no meaning on a CPU"),
        ("min_lr=1e-7", "has no meaning while optimizer.lr_decay_style is constant"),
        ("lr_warmup_iters=4", "must be less than batch.train_iters = 4, got 4; at most 3"),
        ("epsilon_high=0.1", "must be at least algorithm.epsilon = 0.2, got 0.1"),
        ("reward_weights=[1,2.5]", "1 functions (exact_number), 2 weights"),
        ("eval_steps=5", "give data.eval"),
        ("chat_template_kwargs={tokenize: true}", "holds 'tokenize', which is decided elsewhere"),
        ("chat_template_kwargs={tools: []}", "holds 'tools', which are a column of the data"),
        ("chat_template_kwargs=[enable_thinking]", "data.chat_template_kwargs"),
        ("save_total_limit=2", "has no meaning without checkpoint.save_steps"),
        ("top_k=0", "must be -1 (all tokens) or at least 1"),
        ("vllm_engine_kwargs={dtype: float16}", "holds 'dtype', which rollout.vllm_dtype decides"),
        ("vllm_engine_kwargs={load_format: auto}", "holds 'load_format', which the trainer itself decides"),
        ("vllm_max_model_len=512", "1 + 512 = 513, got 512"),
        ("profile_steps=[3,2]", "got 3 and 2: give [2, 3]"),
        ("profile_steps=[2,5]", "names step 5, and the run has 4"),
        ("profile_steps=[2]", "must have at least 2 entries, got [2]"),
        ("profile_steps=[1,2,3]", "must have at most 2 entries, got [1, 2, 3]"),
        ("profile_ranks=[0]", "has no meaning without logging.profile_steps"),
        ("prometheus_host=0.0.0.0", "has no meaning without logging.prometheus_port"),
    ],
)
def test_each_mistake_is_named(run_file: Path, override: str, expected: str) -> None:
    text = mistakes(run_file, override)
    assert expected in text
    assert "1 mistake" in text


def test_memory_of_vllm_is_a_share_or_a_size(run_file: Path) -> None:
    cuda = ["device=cuda", "dtype=bfloat16"]
    text = mistakes(run_file, *cuda, "vllm_kv_cache_gib=2", "vllm_gpu_memory_utilization=0.3")
    assert "has no meaning beside rollout.vllm_kv_cache_gib, which sets the size" in text
    sized, shared = (load_run(run_file, cuda + more).rollout for more in (["vllm_kv_cache_gib=2"], []))
    assert sized.engine_memory("cuda") == {"kv_cache_memory_bytes": 2 * 2**30, "gpu_memory_utilization": 0.01}
    assert shared.engine_memory("cuda") == {"gpu_memory_utilization": 0.3}
    assert shared.engine_memory("cpu") == {"kv_cache_memory_bytes": 2**30}


@pytest.mark.parametrize("override", ["use_vllm=true", "rollout.use_vllm=true"])
def test_use_vllm_true_is_accepted_and_dropped(run_file: Path, override: str) -> None:
    assert load_run(run_file, [override]) == load_run(run_file)


def test_duplicate_keys_are_mistakes(run_file: Path) -> None:
    run_file.write_text(SMALL + "name: other\nalgorithm:\n  beta: 0.1\n  beta: 0.2\n")
    text = mistakes(run_file)
    assert "name (line 2): is given again on line 8" in text
    assert "algorithm.beta (line 10): is given again on line 11" in text


def test_missing_sections_name_the_keys_they_need(run_file: Path) -> None:
    run_file.write_text("name: x\nbatch:\n")
    text = mistakes(run_file)
    for key in ("model.path", "data.train", "batch.train_iters", "rewards.reward_funcs"):
        assert f"{key}: is required" in text or f"{key} (line" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a: [1", "is not valid YAML"), ("- 1\n", "must hold keys and values"), ("model: 3\n", "is a section")],
)
def test_broken_files(run_file: Path, content: str, expected: str) -> None:
    run_file.write_text(content)
    assert expected in mistakes(run_file)


def test_missing_file_names_the_run_files_beside_it(run_file: Path) -> None:
    text = mistakes(run_file.with_name("smal.yaml"))
    assert "does not exist" in text
    assert str(run_file) in text


def test_a_missing_file_of_nearly_a_shipped_name_is_asked_about(run_file: Path) -> None:
    assert "Did you mean qwen3_8b, which comes with grpo-hpc?" in mistakes(run_file.with_name("qwen3-8b.yaml"))


def test_config_is_frozen(run_file: Path) -> None:
    cfg = load_run(run_file)
    with pytest.raises(ValueError, match="frozen"):
        cfg.batch.train_iters = 5  # type: ignore[misc]
    assert isinstance(cfg, RunConfig)


def test_experts_come_back_from_colocated_engines_alone(run_file: Path) -> None:
    gpu = ["device=cuda", "dtype=bfloat16", "nproc_per_node=2", "router_replay_mode=R3"]
    load_run(run_file, gpu)
    assert "R3 needs rollout.vllm_mode: colocate" in mistakes(run_file, *gpu, "vllm_mode=server")


def test_reporters_are_a_list_of_known_names(run_file: Path) -> None:
    assert load_run(run_file).logging.report_to == ["tensorboard"]
    assert load_run(run_file, ["report_to=[]"]).logging.report_to == []
    said = mistakes(run_file, "report_to=[wandbb]")
    assert "must be tensorboard or wandb or swanlab, got 'wandbb'; did you mean wandb?" in said
    assert "names wandb twice" in mistakes(run_file, "report_to=[wandb, wandb]")
    assert "only with wandb in logging.report_to" in mistakes(run_file, "wandb_project=p")
    assert "only with wandb or swanlab" in mistakes(run_file, "report_offline=true")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("reward_params={judge: {api_key: hush-0123456}}", "rewards.reward_params.judge.api_key"),
        ("reward_params={own: {auth: {token: hush-0123456}}}", "rewards.reward_params.own.auth.token"),
        (
            "reward_params={judge: {base_url: 'https://me:hush-0123456@host/v1'}}",
            "rewards.reward_params.judge.base_url",
        ),
        ("chat_template_kwargs={password: hush-0123456}", "data.chat_template_kwargs.password"),
        ("model.path=https://me:hush-0123456@host/m", "model.path"),
        ("logging.wandb_api_key=hush-0123456", "logging.wandb_api_key"),
    ],
)
def test_a_secret_in_a_run_file_is_refused_and_not_shown(run_file: Path, override: str, key: str) -> None:
    text = mistakes(run_file, override)
    assert key in text and "holds a secret" in text and "`secrets` of the cluster profile" in text
    assert "api_key_env: NAME" in text and "hush" not in text


@pytest.mark.parametrize(
    "override", ["reward.judge.api_key=hush-0123456", "none.such={password: hush-0123456}", "x.token=[hush-0123456"]
)
def test_a_secret_under_a_wrong_key_is_not_shown_either(run_file: Path, override: str) -> None:
    assert "hush" not in mistakes(run_file, override)


def test_keys_of_run_files_and_harmless_parameters_are_no_secrets(run_file: Path) -> None:
    assert not [key for key in [*SECTION_OF, *SECTIONS] if looks_secret(key)]
    judge = "{api_key_env: JUDGE_API_KEY, api_key_file: ~/key, max_tokens: 5, answer_key: solution, eos_token: '</s>'}"
    load_run(run_file, [f"reward_params={{judge: {judge}}}"])
