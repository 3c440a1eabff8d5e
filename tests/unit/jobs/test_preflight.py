from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import CheckpointError, ConfigError, EnvironmentProblem
from grpo_hpc.jobs.checks.check_node import environment_problems
from grpo_hpc.jobs.checks.preflight import check_model_folder, preflight
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.on_disk.model_folder import INDEX, check_model, read_model

CONFIGS = Path(__file__).parents[3] / "configs" / "models"
NORM = "model.layers.3.input_layernorm.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n"


@pytest.fixture
def model(tmp_path, zero_weights) -> Path:
    """A whole folder of Qwen3-0.6B whose weights are zero."""
    shutil.copy(next(CONFIGS.glob("Qwen3-0.6B*")), tmp_path / "config.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    zero_weights(tmp_path)
    return tmp_path


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="nowhere does not exist"):
        check_model_folder(tmp_path / "nowhere")


def test_everything_missing_in_a_model_folder_is_named(tmp_path: Path, model: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).rename(model / f"other-{name}")
    with pytest.raises(EnvironmentProblem) as caught:
        check_model_folder(model)
    assert "weights (model*.safetensors)" in caught.value.message
    assert "tokenizer.json" in caught.value.message
    assert "config.json" not in caught.value.message
    for name in ("model.safetensors", "tokenizer.json"):
        (model / f"other-{name}").rename(model / name)
    check_model_folder(model)


def test_headers_are_read_before_anything_is_queued(model: Path, zero_weights) -> None:
    os.truncate(model / "model.safetensors", 10**6)
    with pytest.raises(CheckpointError, match="has 1,000,000 bytes, but its header describes"):
        check_model_folder(model)
    zero_weights(model, left_out=[NORM])
    with pytest.raises(CheckpointError, match=f"tensor '{NORM}' is missing"):
        check_model_folder(model)
    zero_weights(model, more=[(NORM, "bfloat16", (512,))])
    with pytest.raises(CheckpointError, match=r"has the shape \(512,\), but config.json asks for \(1024,\)"):
        check_model_folder(model)
    zero_weights(model, more=[(NORM, "int8", (1024,))])
    with pytest.raises(CheckpointError, match="is int8: quantised models are neither trained nor converted"):
        check_model_folder(model)
    zero_weights(model, more=[("model.extra.weight", "bfloat16", (2,))])
    with pytest.raises(CheckpointError, match=r"does not explain: \['model.extra.weight'\]"):
        check_model_folder(model)


def test_a_trained_head_is_not_ignored_where_the_configuration_ties_it(model: Path, zero_weights) -> None:
    """Training would start from another model than the files hold."""
    weights, size = zero_weights(model, more=[("lm_head.weight", "bfloat16", (151936, 1024))]), 151936 * 1024 * 2
    check_model_folder(model)
    with weights.open("r+b") as file:
        file.seek(-size // 2, os.SEEK_END)  # the head is the last
        file.write(b"\x80\x3f")
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings: true, but 'lm_head.weight'.*\n.*set tie_word_emb"):
        check_model_folder(model)
    zero_weights(model, more=[("lm_head.weight", "float32", (151936, 1024))])
    with pytest.raises(CheckpointError, match="would be lost"):
        check_model_folder(model)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named_as_one(name: str, model: Path) -> None:
    (model / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of git-lfs .*\nFetch it: git -C .* lfs pull"):
        check_model_folder(model)


def test_known_leftovers_are_no_part_of_a_model(model: Path, zero_weights) -> None:
    """Mistral's own file beside the shards; frequencies that older versions of transformers saved; adapters."""
    zero_weights(model, more=[(f"model.layers.{k}.self_attn.rotary_emb.inv_freq", "float32", (64,)) for k in range(28)])
    shard = model / "model-00001-of-00001.safetensors"
    (model / "model.safetensors").rename(shard)
    (model / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(read_model(model), shard.name)}))
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        (model / name).write_bytes(b"anything")
    check_model_folder(model)
    assert not any("rotary" in name for name in read_model(model))
    assert {tensor.chunks[0].file for tensor in read_model(model).values()} == {shard}
    shutil.copyfile(model / "consolidated.safetensors", model / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds model.safetensors beside the 1 files that .*: two models"):
        check_model_folder(model)


def test_mistrals_own_file_alone_is_no_model(model: Path) -> None:
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    with pytest.raises(CheckpointError, match=r"has no model\*.safetensors and no .*, but consolidated.safetensors"):
        read_model(model)


def test_training_needs_no_vision_tower(tmp_path: Path, zero_weights) -> None:
    """What training exports has none, and can be trained again."""
    shutil.copy(next(CONFIGS.glob("Qwen2.5-VL-3B*")), tmp_path / "config.json")
    zero_weights(tmp_path)
    vision = [name for name in read_model(tmp_path) if "visual." in name]
    zero_weights(tmp_path, left_out=vision)
    tensors, shape = read_model(tmp_path), read_shape(tmp_path)
    check_model(tmp_path, tensors, shape, text_only=True)
    with pytest.raises(CheckpointError, match=f"tensor '{vision[0]}' is missing"):
        check_model(tmp_path, tensors, shape)


def run_over(folder: Path, train: str, evaluation: str) -> RunConfig:
    """A run of exact_number over rows with these keys beside the prompt, of the model in ``folder``."""
    for name, rest in (("train", train), ("eval", evaluation)):
        (folder / f"{name}.jsonl").write_text(f'{{"prompt": "2 + 2"{rest}}}\n{{"prompt": "3 + 3"}}\n')
    data = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")}
    sections = {"model": {"path": str(folder)}, "data": data, "rewards": {"reward_funcs": ["exact_number"]}}
    return RunConfig.model_validate({"name": "x", "batch": {"train_iters": 1}, **sections})


def test_rewards_are_checked_against_data_before_queueing(model: Path) -> None:
    preflight(run_over(model, ', "answer": 4', ', "answer": 4'), Profile(executor="slurm"))


@pytest.mark.parametrize(
    ("train", "evaluation", "said"),
    [
        (', "anwser": 4', ', "answer": 4', "'exact_number' needs the column 'answer', and no row of .*train.jsonl"),
        (', "answer": 4', "", "'exact_number' needs the column 'answer', and no row of .*eval.jsonl"),
        (', "answer": null', ', "answer": 4', "null in all 2 rows of .*train.jsonl"),
    ],
)
def test_a_column_that_no_row_has_is_refused_before_queueing(
    model: Path, train: str, evaluation: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        preflight(run_over(model, train, evaluation), Profile(executor="slurm"))


TOOLS = 'def add(a: int, b: int) -> int:\n    "Add."\n    return a + b\n'
GAME = "class Game:\n    def reset(self, seed): ...\n    def step(self, action): ...\n"


def played(model: Path, text: str, name: str, rewards: list[str]) -> RunConfig:
    (model / "mine.py").write_text(text)
    cfg = run_over(model, ', "answer": 4', ', "answer": 4')
    rollout = cfg.rollout.model_copy(update={"environment": f"{model}/mine.py{name}"})
    return cfg.model_copy(
        update={"rollout": rollout, "rewards": cfg.rewards.model_copy(update={"reward_funcs": rewards})}
    )


AGENT = "class Agent:\n    async def run(self, row, base_url, key): ...\n"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (TOOLS, "", "weighs rewards of turns, and functions that the policy calls give none"),
        (AGENT, ":Agent", "weighs rewards of turns, and an agent gives one at its end alone"),
        (GAME, ":Game", None),
    ],
)
def test_rewards_of_turns_are_wanted_of_what_gives_them(model: Path, text: str, name: str, said: str | None) -> None:
    cfg = played(model, text, name, ["exact_number"])
    cfg = cfg.model_copy(update={"algorithm": cfg.algorithm.model_copy(update={"turn_advantage_coef": 1.0})})
    if said is None:
        return preflight(cfg, Profile(executor="slurm"))
    with pytest.raises(ConfigError, match=said):
        preflight(cfg, Profile(executor="slurm"))
    return None


@pytest.mark.parametrize(
    ("text", "name", "rewards", "said"),
    [
        (TOOLS, "", ["exact_number"], None),
        (GAME, ":Game", ["environment", "exact_number"], None),
        (TOOLS, "", ["environment"], "names environment, but functions that the policy calls give no rewards"),
        (TOOLS, ":ad", ["exact_number"], "has no environment 'ad'"),
        (TOOLS + "def x(", "", ["exact_number"], r"mine\.py:4, where rollout\.environment should be"),
        ("class Game: ...", ":Game", ["exact_number"], r"mine\.py:1: the class Game is no environment"),
    ],
)
def test_an_environment_is_looked_at_before_queueing_and_by_each_node(
    model: Path, text: str, name: str, rewards: list[str], said: str | None
) -> None:
    cfg = played(model, text, name, rewards)
    if said is None:
        preflight(cfg, Profile(executor="slurm"))
        assert environment_problems(cfg) == []
        return
    with pytest.raises(ConfigError, match=said):
        preflight(cfg, Profile(executor="slurm"))
    assert len(environment_problems(cfg)) == 1


@pytest.mark.parametrize(("text", "name"), [(TOOLS, ""), (GAME, ":Game")])
def test_tools_of_rows_are_refused_beside_functions_that_the_policy_is_told_of(
    model: Path, text: str, name: str
) -> None:
    """A class may do with them what it likes."""
    cfg = played(model, text, name, ["exact_number"])
    for empty in ("null", "[]"):
        run_over(model, f', "answer": 4, "tools": {empty}', ', "answer": 4')
        preflight(cfg, Profile(executor="slurm"))
    run_over(model, ', "answer": 4, "tools": [{"name": "sub"}]', ', "answer": 4')
    if name:
        return preflight(cfg, Profile(executor="slurm"))
    with pytest.raises(ConfigError, match=r"rows of .*train.jsonl have a column 'tools', and the policy is told of"):
        preflight(cfg, Profile(executor="slurm"))
    return None


def test_what_only_an_import_shows_is_found_by_the_node(model: Path) -> None:
    cfg = played(model, "import no_such_package\n" + TOOLS, "", ["exact_number"])
    preflight(cfg, Profile(executor="slurm"))
    (problem,) = environment_problems(cfg)
    assert "mine.py:1 failed: ModuleNotFoundError: No module named 'no_such_package'" in problem
