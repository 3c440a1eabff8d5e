"""`grpo-hpc import-swift`: recipes import and plan, every flag is accounted for, mistakes are clean."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from grpo_hpc.cli import main
from grpo_hpc.config import load_run
from grpo_hpc.config.plain_yaml import parse_value
from grpo_hpc.errors import ConfigError
from grpo_hpc.importing.fates import Fate
from grpo_hpc.importing.show_import import show_import, to_dict
from grpo_hpc.importing.source import from_files, from_words
from grpo_hpc.importing.table import FLAGS
from grpo_hpc.importing.write import Imported, import_run
from grpo_hpc.plan.make import make_plan
from grpo_hpc.rewards.registry import check_names

RECIPES = Path(__file__).parent / "recipes"
REWARDLESS = {"opd"}  # a teacher: not here yet
ENOUGH = ["--rlhf_type", "grpo", "--model", "models/m", "--dataset", "d.jsonl", "--train_iters", "10"]
ENOUGH += ["--reward_funcs", "exact_number"]


def imported(*flags: str) -> Imported:
    return import_run(from_words([*ENOUGH, *flags]))


def values(result: Imported) -> dict[str, object]:
    return {key: value for row in result.rows for key, value in row.keys.items()}


def fate(result: Imported, name: str) -> Fate:
    return next(row.fate for row in result.rows if row.name == name)


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("recipe", sorted(RECIPES.iterdir()), ids=lambda path: path.stem)
def test_recipes_import_and_plan(recipe: Path, tmp_path: Path) -> None:
    result = import_run(from_files([recipe]))
    assert {row.fate for row in result.rows}.isdisjoint({Fate.UNKNOWN, Fate.OPEN})
    file = tmp_path / "run.yaml"
    file.write_text(result.text)
    if recipe.stem in REWARDLESS:
        assert [problem.key for problem in result.problems] == ["rewards.reward_funcs"]
        load_run(file, ["reward_funcs=[exact_number]"])
    else:
        assert result.problems == ()
        make_plan(load_run(file))


@pytest.mark.parametrize("recipe", sorted(RECIPES.iterdir()), ids=lambda path: path.stem)
def test_no_flag_is_dropped(recipe: Path) -> None:
    """Each word that begins with two dashes has a row, whatever the parser makes of the script."""
    text = recipe.read_text()
    if recipe.suffix == ".yaml":
        names = set(yaml.safe_load(text)) - {"ENV", "train", "rollout"}
    else:
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        names = set(re.findall(r"--([a-z_0-9]+)", code))
        assert len(names) > 10
    rows = {row.name for row in import_run(from_files([recipe])).rows}
    assert names <= rows


@pytest.mark.parametrize(
    "recipe",
    [path for path in sorted(RECIPES.iterdir()) if re.search(r"num_train_epochs|max_epochs", path.read_text())],
    ids=lambda path: path.stem,
)
def test_recipes_over_data_of_a_hub_import_and_plan_in_epochs(recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / recipe.name
    script.write_text(re.sub(r"#\d+(?=['\s])", "", recipe.read_text()))
    result = import_run(from_files([script]))
    assert result.problems == () and values(result)["batch.num_train_epochs"] > 0
    (tmp_path / "run.yaml").write_text(result.text)
    plan = make_plan(load_run(tmp_path / "run.yaml"))
    assert plan.train_iters is None and any("num_train_epochs" in warning for warning in plan.warnings)


def test_the_moe_recipe_in_full() -> None:
    found = values(import_run(from_files([RECIPES / "moe_full.sh"])))
    expected = {
        "resources.nodes": 1,
        "resources.nproc_per_node": 8,
        "parallel.tensor_model_parallel_size": 4,
        "parallel.pipeline_model_parallel_size": 2,
        "batch.train_iters": 16000,
        "batch.global_batch_size": 8,
        "rollout.vllm_tensor_parallel_size": 8,
        "rollout.vllm_gpu_memory_utilization": 0.4,
        "algorithm.epsilon": 3e-4,
        "algorithm.epsilon_high": 4e-4,
        "optimizer.lr": 1e-6,
        "model.path": "models/Qwen3-30B-A3B-Instruct-2507",
    }
    assert {key: found[key] for key in expected} == expected


PLUGIN = "envs = {}\nclass FrozenLakeEnv: ...\nenvs['frozen_lake'] = FrozenLakeEnv\n"
GYM = ["--multi_turn_scheduler", "gym_scheduler", "--gym_env", "frozen_lake", "--vllm_max_model_len", "2048"]


def test_the_frozen_lake_recipe() -> None:
    found = values(import_run(from_files([RECIPES / "frozen_lake.sh"])))
    expected = {
        "rollout.environment": "frozen_lake_plugin.py:frozen_lake",
        "rollout.max_turns": 10,
        "rollout.vllm_max_model_len": 6632,
        "rewards.reward_funcs": ["environment"],
    }
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("flags", "rewards"),
    [
        ([], ["exact_number", "environment"]),
        (["--use_gym_env", "true"], ["exact_number", "environment"]),
        (["--use_gym_env", "false"], ["exact_number"]),
    ],
)
def test_the_class_behind_gym_env_is_found_in_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], rewards: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    result = imported(*GYM, "--external_plugins", "plugin.py", "--completion_length_limit_scope", "total", *flags)
    found = values(result)
    assert found["rollout.environment"] == "plugin.py:FrozenLakeEnv"
    assert found["rollout.completion_length_limit_scope"] == "total"
    assert found["rewards.reward_funcs"] == rewards
    assert result.problems == ()
    (tmp_path / "plugin.py").write_text("not python at all")
    assert "put the name of the class there" in str(imported(*GYM, "--external_plugins", "plugin.py").rows)


@pytest.mark.parametrize(
    ("flags", "name", "says"),
    [
        (["--multi_turn_scheduler", "math_tip_trick"], "multi_turn_scheduler", "a class with start and reply"),
        (["--multi_turn_scheduler", "gym_scheduler"], "multi_turn_scheduler", "each row names its environment"),
        (["--gym_env", "frozen_lake"], "gym_env", "it comes with no file"),
    ],
)
def test_schedulers_and_environments_without_a_file(flags: list[str], name: str, says: str) -> None:
    row = next(row for row in imported(*flags).rows if row.name == name)
    assert row.fate is Fate.UNSUPPORTED
    assert says in row.note


def test_old_names_are_renamed() -> None:
    result = imported("--max_epochs", "2", "--save", "out/x", "--save_interval", "7", "--log-interval", "1")
    assert fate(result, "save_interval") is Fate.RENAMED
    assert values(result)["checkpoint.save_steps"] == 7
    assert values(result) | {"output_dir": "out", "name": "x"} == values(result)
    assert fate(result, "log_interval") is Fate.NO_EFFECT


def test_defaults_of_ms_swift_are_written_where_ours_differ() -> None:
    result = imported()
    assert values(result)["algorithm.beta"] == 0.04
    assert values(result)["optimizer.weight_decay"] == 0.1
    assert fate(result, "beta") is Fate.DEFAULT
    assert values(imported("--log_interval", "1"))["algorithm.beta"] == 0.1, "3.11 had another default"
    assert fate(imported("--beta", "0"), "beta") is Fate.TAKEN
    assert not any(row.fate is Fate.DEFAULT and row.name == "epsilon" for row in result.rows), "ours is the same"


def test_defaults_that_depend_on_other_flags() -> None:
    assert values(imported())["optimizer.lr"] == 1e-5
    assert values(imported("--tuner_type", "lora"))["optimizer.lr"] == 1e-4
    assert values(imported("--loss_type", "cispo", "--epsilon", "0.3"))["algorithm.epsilon_high"] == 0.3
    assert "algorithm.epsilon_high" not in values(imported())


def test_numbers_lists_truth_values_and_texts_take_the_type_of_their_key() -> None:
    weights = imported("--reward_funcs", "exact_number", "my.py:f", "--reward_weights", "1", "0.5")
    assert values(weights)["rewards.reward_weights"] == [1, 0.5]
    assert values(imported("--log_completions"))["logging.log_completions"] is True
    assert values(imported("--vllm_enforce_eager", "False"))["rollout.vllm_enforce_eager"] is False
    assert values(imported("--model", "1e3"))["model.path"] == "1e3"
    wrong = imported("--lr", "fast", "--micro_batch_size", "0")
    assert {fate(wrong, name) for name in ("lr", "micro_batch_size")} == {Fate.UNSUPPORTED}
    assert "optimizer.lr must be a number, got 'fast'" in {row.note for row in wrong.rows}


def test_the_last_of_equal_flags_counts() -> None:
    result = imported("--micro_batch_size", "2", "--micro_batch_size", "1")
    assert values(result)["batch.micro_batch_size"] == 1
    assert [row.fate for row in result.rows if row.name == "micro_batch_size"] == [Fate.IGNORED, Fate.TAKEN]


def test_unknown_flags_are_named_with_their_neighbour() -> None:
    result = imported("--micro_batchsize", "4", "--zzz", "1")
    notes = {row.name: row.note for row in result.rows if row.fate is Fate.UNKNOWN}
    assert notes == {"micro_batchsize": "did you mean micro_batch_size?", "zzz": "ms-swift has no such parameter"}
    assert "micro_batchsize: 4" in result.text


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--sequence_parallel", "true"], "sequence_parallel"),
        (["--loss_type", "cispo", "--epsilon", "0.1"], "epsilon"),
        (["--loss_type", "sapo", "--delta", "4"], "delta"),
        (["--max_turns", "3"], "max_turns"),
        (["--kl_in_reward", "true", "--scale_rewards", "gdpo"], "kl_in_reward"),
        (["--vllm_mode", "server", "--vllm_max_model_len", "99"], "vllm_max_model_len"),
        (["--reward_model", "x"], "reward_model"),
        (["--move_model_batches", "8"], "move_model_batches"),
        (["--completion_length_limit_scope", "total"], "completion_length_limit_scope"),
        (["--ref_model_sync_steps", "9"], "ref_model_sync_steps"),
        (["--ref_model_mixup_alpha", "0.5"], "ref_model_mixup_alpha"),
        (["--dataset", "d#80", "--num_train_epochs", "1"], "train_iters"),
    ],
)
def test_what_ms_swift_accepts_and_ignores_is_said(flags: list[str], name: str) -> None:
    assert fate(imported(*flags), name) is Fate.IGNORED


def test_epochs_become_steps_by_the_rows_that_are_known(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x"}\n\n' * 100)
    flags = ["--num_train_epochs", "2", "--num_generations", "8", "--global_batch_size", "32"]
    assert values(imported("--dataset", str(rows), *flags))["batch.train_iters"] == 100 * 8 * 2 // 32
    assert values(imported("--dataset", "a/b#50", "c/d#10", *flags))["batch.train_iters"] == 60 * 8 * 2 // 32


def test_epochs_over_rows_that_cannot_be_counted_stay_epochs(tmp_path: Path) -> None:
    flags = ["--num_train_epochs", "2", "--num_generations", "8", "--global_batch_size", "32"]
    result = imported("--dataset", "a/b", *flags, "--lr_warmup_fraction", "0.1")
    assert result.problems == ()
    assert values(result)["batch.num_train_epochs"] == 2 and "batch.train_iters" not in values(result)
    assert fate(result, "train_iters") is Fate.IGNORED, "epochs overwrite it"
    assert fate(result, "lr_warmup_fraction") is Fate.UNSUPPORTED, "a share of steps that are not known"
    (tmp_path / "run.yaml").write_text(result.text)
    assert make_plan(load_run(tmp_path / "run.yaml")).train_iters is None
    wrong = imported("--dataset", "a/b", "--num_train_epochs", "1.5")
    assert values(wrong)["batch.train_iters"] == 10 and fate(wrong, "num_train_epochs") is Fate.UNSUPPORTED


def test_what_is_missing_is_named_exactly() -> None:
    result = import_run(from_words(["--rlhf_type", "grpo", "--model", "m"]))
    assert {problem.key for problem in result.problems} == {
        "data.train",
        "batch.train_iters",
        "rewards.reward_funcs",
    }
    assert "To be mended before it can run" in result.text
    epochs = import_run(from_words(["--rlhf_type", "grpo", "--model", "m", "--num_train_epochs", "2"]))
    assert {problem.key for problem in epochs.problems} == {"data.train", "rewards.reward_funcs"}


def test_the_limit_of_collectives_is_in_seconds_under_its_present_name_and_in_minutes_under_the_old_one() -> None:
    key = "resources.distributed_timeout_minutes"
    assert values(imported("--ddp_timeout", "5400"))[key] == 90.0
    assert values(imported("--distributed_timeout_minutes", "45"))[key] == 45
    assert fate(imported("--ddp_timeout", "long"), "ddp_timeout") is Fate.UNSUPPORTED
    assert fate(imported("--ddp_timeout", "0"), "ddp_timeout") is Fate.UNSUPPORTED


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--vllm_enable_prefix_caching", "false"], Fate.UNSUPPORTED),
        (["--vllm_enable_prefix_caching", "true"], Fate.NO_EFFECT),
        (["--use_megatron_fsdp", "false"], Fate.NO_EFFECT),
        (["--use_megatron_fsdp", "true"], Fate.UNSUPPORTED),
        (["--cp_comm_type", "p2p"], Fate.NO_EFFECT),
        (["--cp_comm_type", "a2a"], Fate.UNSUPPORTED),
        (["--hidden_dropout", "0.0"], Fate.NO_EFFECT),
        (["--hidden_dropout", "0.1"], Fate.UNSUPPORTED),
        (["--attention_dropout", "0.1"], Fate.UNSUPPORTED),
        (["--window_size", "128"], Fate.UNSUPPORTED),
        (["--layer_types", "full_attention"], Fate.UNSUPPORTED),
        (["--mrope_section", "16", "24", "24"], Fate.UNSUPPORTED),
        (["--softmax_type", "vanilla"], Fate.NO_EFFECT),
        (["--softmax_type", "learnable"], Fate.UNSUPPORTED),
        (["--muon_momentum", "0.9"], Fate.IGNORED),
        (["--muon_momentum", "0.9", "--optimizer", "muon"], Fate.UNSUPPORTED),
        (["--fp8_recipe", "delayed"], Fate.IGNORED),
        (["--fp8_recipe", "delayed", "--fp8_format", "e4m3"], Fate.UNSUPPORTED),
        (["--mtp_loss_scaling_factor", "0.1", "--mtp_num_layers", "0"], Fate.IGNORED),
        (["--start_weight_decay", "0.1"], Fate.IGNORED),
        (["--use_chat_template", "true"], Fate.NO_EFFECT),
        (["--use_chat_template", "false"], Fate.UNSUPPORTED),
        (["--loss_scale", "last_round"], Fate.NO_EFFECT),
        (["--loss_scale", "last_round", "--multi_turn_scheduler", "gym_scheduler"], Fate.UNSUPPORTED),
        (["--loss_scale", "default", "--multi_turn_scheduler", "gym_scheduler"], Fate.NO_EFFECT),
        (["--loss_scale", "react"], Fate.UNSUPPORTED),
    ],
    ids=" ".join,
)
def test_a_flag_without_a_key_has_no_effect_only_where_its_value_is_what_happens(
    flags: list[str], wanted: Fate
) -> None:
    assert fate(imported(*flags), flags[0].removeprefix("--")) is wanted


def test_parameters_of_built_in_rewards() -> None:
    flags = ["--cosine_max_len_value_wrong", "-1.0", "--cosine_max_len", "2048", "--soft_cache_length", "512"]
    result = imported(*flags, "--repetition_n_grams", "4", "--reward_funcs", "cosine", "soft_overlong", "accuracy")
    assert values(result)["rewards.reward_params"] == {
        "cosine": {"max_len_value_wrong": -1, "max_completion_length": 2048},
        "soft_overlong": {"soft_cache_length": 512},
    }
    assert fate(result, "repetition_n_grams") is Fate.IGNORED
    assert fate(imported("--cosine_max_len", "long", "--reward_funcs", "cosine"), "cosine_max_len") is Fate.UNSUPPORTED


def test_every_flag_of_a_built_in_reward_becomes_its_parameter() -> None:
    given = {
        "cosine": {
            "min_len_value_wrong": -0.5,
            "max_len_value_wrong": 0,
            "min_len_value_correct": 1,
            "max_len_value_correct": 0.5,
            "max_completion_length": 1024,
        },
        "repetition": {"n_grams": 4, "max_penalty": -0.5},
        "soft_overlong": {"max_completion_length": 2048, "soft_cache_length": 256},
    }
    named = {"max_completion_length": {"cosine": "cosine_max_len", "soft_overlong": "soft_max_length"}}
    named |= {"soft_cache_length": {"soft_overlong": "soft_cache_length"}}
    flags = ["--reward_funcs", *given]
    for reward, parameters in given.items():
        for name, value in parameters.items():
            flags += [f"--{named.get(name, {}).get(reward, f'{reward}_{name}')}", str(value)]
    result = imported(*flags)
    assert values(result)["rewards.reward_params"] == given
    assert {row.fate for row in result.rows}.isdisjoint({Fate.UNSUPPORTED, Fate.UNKNOWN})
    check_names(list(given), given)


def test_checkpoints_that_other_layouts_can_load() -> None:
    assert values(imported("--dist_ckpt_optim_fully_reshardable", "true"))["checkpoint.reshardable"] is True
    for value in ("true", "false"):
        safetensors = imported("--save_safetensors", value)
        assert "checkpoint.export" not in values(safetensors)
        assert fate(safetensors, "save_safetensors") is Fate.NO_EFFECT


def test_hub_ids_and_folders(tmp_path: Path) -> None:
    hub = imported("--model", "Qwen/Qwen3-0.6B", "--dataset", "org/Rows#10")
    assert values(hub)["model.path"] == "models/Qwen3-0.6B"
    assert values(hub)["data.train"] == "data/Rows.jsonl"
    local = imported("--model", str(tmp_path), "--dataset", "./rows.jsonl")
    assert (values(local)["model.path"], values(local)["data.train"]) == (str(tmp_path), "./rows.jsonl")


def test_the_system_message_is_a_text_or_a_file_with_one(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Think first.\n")
    assert values(imported("--system", str(file)))["data.system"] == "Think first."
    assert values(imported("--system", "Be brief: 5"))["data.system"] == "Be brief: 5"
    assert fate(imported("--system", "elsewhere/prompt.txt"), "system") is Fate.UNSUPPORTED


@pytest.mark.parametrize(("word", "on"), [("false", False), ("0", False), ("true", True)])
def test_thinking_is_an_argument_of_the_template_on_or_off(word: str, on: bool) -> None:
    result = imported("--enable_thinking", word)
    assert values(result)["data.chat_template_kwargs"] == {"enable_thinking": on}
    assert fate(result, "enable_thinking") == Fate.CONVERTED
    assert fate(imported("--enable_thinking", "perhaps"), "enable_thinking") == Fate.UNSUPPORTED
    assert "data.chat_template_kwargs" not in values(imported())


def test_plugins_are_named_with_their_file() -> None:
    result = imported("--reward_funcs", "exact_number", "mine", "--external_plugins", "p.py")
    assert values(result)["rewards.reward_funcs"] == ["exact_number", "p.py:mine"]


def test_yaml_and_flags_overrule_each_other_as_in_ms_swift(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("rlhf_type: grpo\nbeta: 0.5\nENV:\n  NPROC_PER_NODE: 4\n")
    first, behind = tmp_path / "first.sh", tmp_path / "behind.sh"
    first.write_text("megatron rlhf c.yaml --beta 0.1 --epsilon 0.3")
    behind.write_text("megatron rlhf --beta 0.1 --config c.yaml")
    assert values(import_run(from_files([first])))["algorithm.beta"] == 0.1
    assert values(import_run(from_files([behind])))["algorithm.beta"] == 0.5
    assert values(import_run(from_files([first])))["resources.nproc_per_node"] == 4


def test_the_grpo_command_is_found_among_others(tmp_path: Path) -> None:
    script = tmp_path / "s.sh"
    script.write_text(
        "megatron rlhf --rlhf_type dpo --beta 9\n"
        "srun --nodes 2 torchrun --nproc_per_node 4 --nnodes=2 swift/cli/_megatron/rlhf.py \\\n"
        "  --rlhf_type grpo --beta 0.2 \\\n"
        "  # --lr 1\n"
        "  --lr 2\n"
        "swift rlhf --rlhf_type grpo --beta 7\n"
        "megatron rlhf --rlhf_type grpo --beta 8\n"
    )
    result = import_run(from_files([script]))
    assert values(result)["algorithm.beta"] == 0.2
    assert (values(result)["resources.nodes"], values(result)["resources.nproc_per_node"]) == (2, 4)
    assert any("the shell never passes '--lr 2'" in note for note in result.notes)
    assert any("a second GRPO command" in note for note in result.notes)
    assert any("swift rlhf" in note for note in result.notes)


def test_servers_of_another_script_belong_to_the_run(tmp_path: Path) -> None:
    train, serve = tmp_path / "train.sh", tmp_path / "serve.sh"
    train.write_text("megatron rlhf --rlhf_type grpo --vllm_mode server")
    serve.write_text("swift rollout --vllm_gpu_memory_utilization 0.8 --host 10.0.0.1")
    rows = import_run(from_files([train, serve])).rows
    assert {"vllm_gpu_memory_utilization", "host"} <= {row.name for row in rows}


def test_what_only_a_running_shell_knows_is_kept(tmp_path: Path) -> None:
    script = tmp_path / "s.sh"
    script.write_text("NNODES=$WORLD megatron rlhf --rlhf_type grpo --lr $(cat lr) --vllm_server_timeout 3 $EXTRA")
    result = import_run(from_files([script]))
    assert (fate(result, "lr"), fate(result, "NNODES")) == (Fate.OPEN, Fate.OPEN)
    assert "lr: $(cat lr)" in result.text
    assert "optimizer.lr" not in values(result), "no default is put in its place"


def test_a_word_that_may_hold_flags_has_a_row_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "my run (2).sh"
    script.write_text('srun bash -c "megatron rlhf --rlhf_type grpo --beta 0.5 $EXTRA --epsilon \\$E $@"')
    result = import_run(from_files([script]))
    assert values(result)["algorithm.beta"] == 0.5
    assert {row.name for row in result.rows if row.fate is Fate.OPEN} == {"$EXTRA", "epsilon", "$@"}
    assert values(result) | {"name": "my-run-2"} == values(result) | {"name": yaml.safe_load(result.text)["name"]}


def test_the_yaml_form_may_be_odd(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("rlhf_type: grpo\nENV: 3\ntrain: 4\n5: 6\nbeta: null\nepsilon: {a: 1}\nlr: 1e-5\nlr: 2e-5\n")
    result = import_run(from_files([file]))
    fates = {row.name: row.fate for row in result.rows if row.fate is not Fate.DEFAULT}
    assert (fates["ENV"], fates["5"], fates["beta"]) == (Fate.UNKNOWN, Fate.UNKNOWN, Fate.NO_EFFECT)
    assert fates["epsilon"] is Fate.UNSUPPORTED
    assert any("given again" in note for note in result.notes)


def test_precision_and_order() -> None:
    assert values(imported("--bf16", "false"))["model.dtype"] == "float32"
    assert fate(imported("--fp16", "true"), "fp16") is Fate.UNSUPPORTED
    assert values(imported("--dataset_shuffle", "false"))["data.shuffle"] is True
    off = imported("--dataset_shuffle", "false", "--train_dataloader_shuffle", "false")
    assert values(off)["data.shuffle"] is False


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"echo hello", "there is no `megatron rlhf --rlhf_type grpo` command"),
        (b"megatron rlhf --rlhf_type dpo --beta 1", "there is no `megatron rlhf --rlhf_type grpo` command"),
        (b"megatron rlhf --beta 1", "rlhf_type is not given"),
        (b"megatron rlhf --rlhf_type grpo 'x", "the quote ' is never closed"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b"megatron \0", "holds the control character U+0000"),
        (b"megatron \x1b", "holds the control character U+001B"),
        (b"megatron rlhf nowhere.yaml", "nowhere.yaml does not exist"),
        (b"#" * (1 << 21), "it is larger than 131,072 bytes"),
    ],
)
def test_unreadable_input_ends_with_2(
    content: bytes, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = tmp_path / "s.sh", tmp_path / "run.yaml"
    script.write_bytes(content)
    assert run("import-swift", str(script), "-o", str(out)) == 2
    assert text in capsys.readouterr().err
    assert not out.exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "run.yaml"
    assert run("import-swift", str(RECIPES / "moe_lora.sh"), "-o", str(out)) == 0
    assert f"Next: grpo-hpc plan {out}" in capsys.readouterr().out
    assert run("plan", str(out)) == 0
    capsys.readouterr()
    assert run("import-swift", str(RECIPES / "moe_lora.sh"), "-o", str(out)) == 2
    assert "exists already" in capsys.readouterr().err
    assert run("import-swift", "--json", "--", *ENOUGH) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True
    assert run("import-swift", "--", "megatron", "rlhf", "--rlhf_type", "grpo") == 1
    captured = capsys.readouterr()
    assert yaml.safe_load(captured.out)["name"] == "imported", "the run file alone is on stdout"
    assert "Before it can run" in captured.err
    assert run("import-swift") == 2
    assert run("import-swift", str(tmp_path)) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_report_has_every_row_and_fits_80_columns() -> None:
    result = import_run(from_files([RECIPES / "dense_vlm_server.sh"]))
    out = io.StringIO()
    show_import(result, Console(file=out, width=80))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = "".join(text.split())
    assert all(row.name in words for row in result.rows)
    assert len(to_dict(result)["flags"]) == len(result.rows)


NAMES = [name for flag in FLAGS for name in flag.names]
VALUES = st.sampled_from(
    ["true", "false", "0", "-1", "8", "1e-6", "x", "", "[1, 2]", '{"a": 1}', "a b", "'", "server", "#3"]
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.lists(VALUES, max_size=3)), max_size=25))
def test_random_flags_give_a_file_that_says_what_is_wrong(flags: list[tuple[str, list[str]]]) -> None:
    words = [word for name, words in flags if name not in ("rlhf_type", "config") for word in (f"--{name}", *words)]
    result = import_run(from_words(["--rlhf_type", "grpo", *words]))
    assert isinstance(yaml.safe_load(result.text), dict)
    assert {name for name, _ in flags} - {"rlhf_type", "config"} <= {row.name for row in result.rows}


def test_words_that_are_no_grpo_command_are_refused() -> None:
    with pytest.raises(ConfigError, match="rlhf_type is not given"):
        from_words(["--beta", "1"])


def test_reporters_and_their_keys(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    words = [*ENOUGH, "--report_to", "wandb", "--wandb_project", "p", "--swanlab_project", "q"]
    exported = "export WANDB_API_KEY=5ecret\n"
    script.write_text(f"{exported}WANDB_MODE=offline megatron rlhf {' '.join(words)}\n")
    result = import_run(from_files([script]))
    found = values(result)
    assert found["logging.report_to"] == ["wandb"] and found["logging.wandb_project"] == "p"
    assert found["logging.report_offline"] is True
    assert "logging.swanlab_project" not in found and fate(result, "swanlab_project") is Fate.NO_EFFECT
    assert "5ecret" not in result.text + json.dumps(to_dict(result))
    assert values(imported("--report_to", "none"))["logging.report_to"] == []
    assert fate(imported("--report_to", "tensorbord"), "report_to") is Fate.UNSUPPORTED


SECRETS_GIVEN = """#!/bin/bash
export WANDB_API_KEY=hush-00001
export MODELSCOPE_API_TOKEN="hush-00002 with blanks"
DB_PWD='hush-00003' HTTPS_PROXY=http://me:hush-00004@proxy:3128 \\
T=hush-00005
hf_token=hush-00006 megatron rlhf {flags} \\
    --hub_token "$T" --swanlab_token hush-00007 --wandb_token=hush-00008 --swanlab_secret 'hush-00009' \\
    --swanlab_webhook_url https://hooks/hush-00010 --password hush-00011 --dataset_url https://u:hush-00012@host/d \\
    --model_kwargs '{{"api_key": "hush-00013", "revision": "main"}}' --output_dir out/hush-00007 hf_token=hush-00014

--api_key hush-00015 lost
swift rollout --model models/m --api_key hush-00016 --hub-token hush-00017
"""


def test_no_secret_of_a_script_is_printed_or_written(tmp_path: Path, capsys) -> None:
    script, out = tmp_path / "train.sh", tmp_path / "run.yaml"
    script.write_text(SECRETS_GIVEN.format(flags=" ".join(ENOUGH)))
    run("import-swift", str(script), "-o", str(out))
    run("import-swift", str(script), "--json")
    said = "".join(capsys.readouterr()) + out.read_text()
    assert "hush" not in said
    told = " ".join(said.split())
    assert "secrets are left out: " in told and "swanlab_token as SWANLAB_API_KEY" in told
    assert "name it as `secrets` in the cluster profile" in told
    assert "revision" in said and "output_dir: out" in said


def test_no_secret_of_yaml_or_of_the_command_line_is_printed(tmp_path: Path, capsys) -> None:
    file = tmp_path / "args.yaml"
    lines = ["rlhf_type: grpo", "model: m", "hub_token: hush-00018", "swanlab_token: 'hush-00019 x'", "ENV:"]
    lines += ["  SLURM_JWT: hush-00020", "  MY_PAT: hush-00021", "model_kwargs: {token: hush-00022}"]
    file.write_text("\n".join(lines))
    run("import-swift", str(file))
    flags = ["--swanlab_token", "hush-00023", "--x=https://u:hush-00024@h", "hf_token=hush-00025"]
    run("import-swift", "--", *ENOUGH, *flags)
    assert "hush" not in "".join(capsys.readouterr())


def test_options_of_sbatch_are_read_as_sbatch_reads_them(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    head = "#!/bin/bash\n#SBATCH -N2 --gres=gpu:nvidia_a100-sxm4-80gb:4,tmpfs:200G  # half a rack\n#SBATCH -A lab\n"
    script.write_text(f"{head}echo $SLURM_NNODES\n#SBATCH --nodes=9\nmegatron rlhf {' '.join(ENOUGH)}\n")
    result = import_run(from_files([script]))
    assert (values(result)["resources.nodes"], values(result)["resources.nproc_per_node"]) == (2, 4)
    said = "\n".join(result.notes)
    assert "--account belong into the cluster profile" in said and "not read by sbatch (line 5)" in said


@pytest.mark.parametrize("empty", [[], None, "", {}, [None], [[]], [""]], ids=str)
def test_no_value_is_as_good_as_any(empty: object, tmp_path: Path) -> None:
    """args.json, which ms-swift writes beside a checkpoint, has every key, and many of them are empty."""
    file = tmp_path / "args.json"
    given = dict.fromkeys((flag.name for flag in FLAGS), empty)
    file.write_text(json.dumps(given | {"rlhf_type": "grpo"}))
    assert isinstance(parse_value(import_run(from_files([file])).text), dict)


def test_an_empty_list_is_no_data_set(tmp_path: Path) -> None:
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"rlhf_type": "grpo", "val_dataset": [], "eval_steps": 5}))
    found = import_run(from_files([file]))
    assert fate(found, "val_dataset") is Fate.NO_EFFECT
    assert fate(found, "eval_steps") is Fate.IGNORED, "there is nothing to evaluate on"


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "9" * 400, "1e300", "-inf", "x"])
@pytest.mark.parametrize(
    "name",
    ["warmup_ratio", "lr_warmup_fraction", "num_train_epochs", "train_iters", "ddp_timeout", "top_k", "max_epochs"],
)
def test_numbers_that_are_none_are_reported(name: str, value: str) -> None:
    assert parse_value(imported(f"--{name}", value).text)


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029", "\r", "\n", "\ufeff", "\uffff"])
def test_nothing_ends_a_comment_of_the_run_file(end: str) -> None:
    evil = f"x{end}output_dir: /evil"
    found = imported("--nonsense", evil, "--sequence_parallel", evil, "--output_dir", f"a/{evil}", f"--a{evil}", "1")
    assert "/evil" not in str(parse_value(found.text)["output_dir"]).removeprefix("a/x").partition(end)[0]
    assert set(parse_value(found.text)) == set(parse_value(imported("--output_dir", "a/b").text))


@pytest.mark.parametrize("char", ["\x00", "\x07", "\x1b", "\x7f", "\x98", "\udc80"])
def test_control_characters_are_refused(char: str) -> None:
    with pytest.raises(ConfigError, match=r"the command line holds the control character U\+"):
        imported("--output_dir", f"a{char}b")


@pytest.mark.parametrize("name", ["x" * 5000, "é" * 200, "a/" * 3000, "~nosuchuser/x"])
def test_names_that_no_file_can_have_name_none(name: str) -> None:
    for flag in ("model", "dataset", "system", "output_dir", "external_plugins"):
        assert parse_value(imported(f"--{flag}", name).text)


def test_a_system_message_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_bytes(b"\xff")
    assert fate(imported("--system", str(file)), "system") is Fate.UNSUPPORTED


def test_more_flags_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="1,205 flags and variables are more than 1,000"):
        imported(*["--lr", "1"] * 1200)
