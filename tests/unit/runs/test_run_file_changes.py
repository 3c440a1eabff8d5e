"""A run file that was changed in the run directory is obeyed, or refused by the names of its keys."""

from __future__ import annotations

import json

import pytest

from grpo_hpc.config import dump_run, load_run
from grpo_hpc.errors import ConfigError
from grpo_hpc.jobs.executors import start
from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.run_file_changes import accept_changes


def change(run: RunDir, *overrides: str) -> None:
    run.run_file.write_text(dump_run(load_run(run.run_file, overrides)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=7", "seed: 42 -> 7; the order of rows"),
        ("nproc_per_node=4", "resources.nproc_per_node: 2 -> 4; checkpoints are bound"),
        ("data.train=/other.jsonl", r"data.train: .*t.jsonl -> /other.jsonl; the run's folder and script"),
        ("adam_beta1=0.8", "optimizer.adam_beta1: 0.9 -> 0.8; its checkpoints"),
        ("beta=0.1", "algorithm.beta: 0.0 -> 0.1; a rollout that is half used"),
        ("tensor_model_parallel_size=2", "1 -> 2; checkpoints are bound to their layout"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(run: RunDir, override: str, said: str) -> None:
    before = run.started_file.read_bytes()
    change(run, override, "train_iters=6")
    with pytest.raises(ConfigError, match=said) as caught:
        accept_changes(run)
    assert "train_iters" not in caught.value.message
    assert run.started_file.read_bytes() == before


def test_what_can_is_said_once(run: RunDir) -> None:
    assert accept_changes(run) == {}
    change(run, "train_iters=6", "lr=1e-7", "report_to=[]")
    assert accept_changes(run) == {
        "batch.train_iters": (4, 6),
        "logging.report_to": (["tensorboard"], []),
        "optimizer.lr": (1e-6, 1e-7),
    }
    assert accept_changes(run) == {}


def test_another_layout_is_obeyed_where_checkpoints_can_be_cut_anew(run: RunDir) -> None:
    change(run, "reshardable=true", "tensor_model_parallel_size=2")
    with pytest.raises(ConfigError, match="checkpoints are bound"):
        accept_changes(run)  # what is there was saved before
    change(run, "tensor_model_parallel_size=1")
    assert accept_changes(run) == {"checkpoint.reshardable": (False, True)}
    change(run, "tensor_model_parallel_size=2")
    assert accept_changes(run) == {"parallel.tensor_model_parallel_size": (1, 2)}


def test_resume_starts_nothing_then(run: RunDir, cli, capsys) -> None:
    change(run, "seed=7")
    with pytest.raises(ConfigError, match="seed: 42 -> 7"):
        start(run)
    assert history(run) == []
    run.started_file.unlink()  # as in a directory of an older version, which knows nothing to compare with
    assert accept_changes(run) == {}
    assert run.started_file.read_bytes() == run.run_file.read_bytes()


def test_keys_on_the_command_line_change_the_file(run: RunDir, tmp_path, tiny_model, cli, capsys) -> None:
    """On a cluster; what is asked of Slurm changes with the nodes. The queue is closed: what is left is looked at."""
    change(run, "reshardable=true")
    accept_changes(run)
    run.cluster_file.write_text("executor: slurm\n")
    (tiny_model(tmp_path / "m") / "tokenizer.json").touch()
    for name in ("t.jsonl", "e.jsonl"):
        (tmp_path / name).write_text('{"prompt": "2 + 2", "answer": "4"}\n' * 4)
    keys = ("train_iters=9", "nodes=2", "max_length=null")
    assert cli("resume", run.path, *keys) == 2  # no sbatch
    said = capsys.readouterr().err
    assert "batch.train_iters: 4 -> 9" in said and "resources.nodes: 1 -> 2" in said, said
    assert run.config().batch.train_iters == load_run(run.started_file).batch.train_iters == 9
    assert "#SBATCH --nodes=2" in run.job_script.read_text()
    assert json.loads(run.plan_file.read_text())["topology"]["world_size"] == 4


def test_a_key_that_cannot_be_obeyed_changes_nothing(run: RunDir, cli, capsys) -> None:
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert cli("resume", run.path, "train_iters=9", "seed=7") == 2
    said = capsys.readouterr().err
    assert "seed: 42 -> 7; the order of rows" in said and "never started: submit it again" in said
    assert cli("resume", run.path, "train_iters=9", "nodes=2") == 2
    assert "resources.nodes: 1 -> 2; checkpoints are bound to their layout" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before


def test_a_run_of_a_sweep_keeps_its_machines_while_all_are_started_together(run: RunDir) -> None:
    change(run, "reshardable=true")
    accept_changes(run)
    change(run, "nodes=2")
    with pytest.raises(ConfigError, match="share one array job"):
        accept_changes(run, alone=False)
    assert accept_changes(run) == {"resources.nodes": (1, 2)}
