from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_hpc.config import RunConfig, load_run
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.files import write_atomically
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.rank_log import redirect_output
from grpo_hpc.runs.run_dir import RunDir, with_absolute_paths
from grpo_hpc.runs.start_lock import move_away

RUN = """
name: small
model: {path: m, config: c.json, dtype: float32}
data: {train: t.jsonl, eval: e.jsonl}
resources: {device: cpu, nproc_per_node: 2}
batch: {train_iters: 4}
rewards: {reward_funcs: [exact_number, my/rewards.py:tidy]}
"""


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    return load_run("run.yaml")


def create(cfg: RunConfig, fresh: bool = False) -> RunDir:
    plan = make_plan(cfg.model_copy(update={"model": cfg.model.model_copy(update={"config": None})}))
    return RunDir.create(cfg, plan, move_away=move_away if fresh else None)


def test_create_writes_the_resolved_run_plan_and_lock(cfg: RunConfig, tmp_path: Path) -> None:
    run = create(cfg)
    assert run.path == tmp_path / "runs" / "small"
    assert run.config() == with_absolute_paths(cfg)
    assert json.loads(run.plan_file.read_text())["schedule"]["global_batch_size"] == 16
    lock = json.loads(run.lock_file.read_text())
    assert lock["packages"]["pydantic"]
    assert set(lock) == {"grpo_hpc", "git", "python", "platform", "created", "packages"}
    assert sorted(path.name for path in run.path.parent.iterdir()) == ["small"]


def test_paths_in_the_resolved_run_file_are_absolute(cfg: RunConfig, tmp_path: Path) -> None:
    resolved = create(cfg).config()
    assert resolved.model.path == str(tmp_path / "m")
    assert resolved.model.config == str(tmp_path / "c.json")
    assert (resolved.data.train, resolved.data.eval) == (str(tmp_path / "t.jsonl"), str(tmp_path / "e.jsonl"))
    assert resolved.rewards.reward_funcs == ["exact_number", f"{tmp_path}/my/rewards.py:tidy"]


def test_the_name_of_a_shipped_model_configuration_stays(cfg: RunConfig) -> None:
    named = cfg.model_copy(update={"model": cfg.model.model_copy(update={"config": "Qwen3-8B"})})
    assert with_absolute_paths(named).model.config == "Qwen3-8B"


def test_an_existing_run_is_refused_and_left_alone(cfg: RunConfig) -> None:
    run = create(cfg)
    before = run.run_file.read_bytes()
    with pytest.raises(ConfigError) as caught:
        create(cfg.model_copy(update={"seed": 1}))
    assert "grpo-hpc resume runs/small" in caught.value.hint
    assert "--fresh, which moves the old one to small.old-1" in caught.value.hint
    assert run.run_file.read_bytes() == before


def test_fresh_moves_old_runs_away_and_loses_none(cfg: RunConfig) -> None:
    for seed in (1, 2, 3):
        create(cfg.model_copy(update={"seed": seed}), fresh=True)
    runs = {path.name: RunDir.open(path).config().seed for path in Path("runs").iterdir()}
    assert runs == {"small.old-1": 1, "small.old-2": 2, "small": 3}


def test_an_unwritable_place_is_an_error_without_remains(cfg: RunConfig) -> None:
    Path("runs").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="cannot be made"):
        create(cfg)


def test_open_refuses_what_is_no_run_and_names_the_runs_beside(cfg: RunConfig) -> None:
    create(cfg)
    with pytest.raises(ConfigError, match="does not exist") as caught:
        RunDir.open("runs/smal")
    assert caught.value.hint == "Did you mean runs/small?"
    with pytest.raises(ConfigError, match="does not exist") as caught:
        RunDir.open("runs/other")
    assert caught.value.hint == "Run directories there: runs/small"
    with pytest.raises(ConfigError) as caught:
        RunDir.open("runs")
    assert caught.value.hint == "It holds runs/small: name one."
    Path("runs/empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no run\.yaml"):
        RunDir.open("runs/empty")


def test_attempts_are_numbered_and_latest_follows(cfg: RunConfig) -> None:
    run = create(cfg)
    with pytest.raises(ConfigError, match="no attempt yet"):
        run.latest_attempt()
    assert [run.new_attempt().name, run.new_attempt().name] == ["attempt_1", "attempt_2"]
    assert run.latest_attempt() == (run.path / "attempt_2").resolve()
    assert run.rank_log(run.latest_attempt(), 3).name == "rank_3.log"


def test_atomic_write_replaces_and_leaves_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, "one")
    write_atomically(file, "two")
    assert file.read_text() == "two"
    assert list(tmp_path.iterdir()) == [file]


def test_redirected_output_of_all_kinds_is_appended(tmp_path: Path) -> None:
    import subprocess
    import sys

    log = tmp_path / "rank_0.log"
    log.write_text("before\n")
    program = (
        "import os, sys; from pathlib import Path; from grpo_hpc.runs.rank_log import redirect_output;"
        f"redirect_output(Path({str(log)!r})); print('python', flush=True);"
        "print('error', file=sys.stderr, flush=True); os.system('echo child')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert log.read_text() == "before\npython\nerror\nchild\n"
    assert redirect_output.__doc__


def test_who_loses_the_race_for_a_name_leaves_nothing(cfg: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run, rename = RunDir.of(cfg), Path.rename

    def too_late(draft: Path, target: Path) -> Path:
        (target / "run.yaml").parent.mkdir()
        (target / "run.yaml").write_text("that of another command")
        return rename(draft, target)

    monkeypatch.setattr(Path, "rename", too_late)
    with pytest.raises(ConfigError, match="exists already"):
        create(cfg)
    assert [path.name for path in run.path.parent.iterdir()] == ["small"]
    assert run.run_file.read_text() == "that of another command"


def test_a_draft_that_somebody_interrupts_leaves_nothing(cfg: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_hpc.runs.run_dir.fingerprint", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        create(cfg)
    assert list(Path("runs").iterdir()) == []


def test_attempts_go_on_counting_where_older_ones_were_deleted(cfg: RunConfig) -> None:
    run = create(cfg)
    (run.path / "attempt_7").mkdir()
    (run.path / "attempt_old").mkdir()
    assert run.new_attempt().name == "attempt_8"
