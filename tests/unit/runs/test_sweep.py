"""Sweeps: their points, their array script, and their runs one after the other on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.config import load_run
from grpo_hpc.config.plain_yaml import parse_value
from grpo_hpc.jobs.array import array_script, create_sweep
from grpo_hpc.jobs.prepare import TRAINER
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.sweep import Sweep, make_points, show_value

ROOT = Path(__file__).parents[3]
BODY = """
if "-1" in run.path.name and not (run.path / "attempt_2").exists(): sys.exit("the second point fails at first")
step(1, run.config().optimizer.lr * 1e5)
log.finished({"lines": []})
"""


@pytest.fixture
def sweep(new_run, trainer, zero_weights) -> Sweep:
    """Three learning rates; the script of each run starts the stand-in."""
    new_run("other")  # makes run.yaml
    Path("t.jsonl").write_text('{"messages": [{"role": "user", "content": "1 + 1"}], "answer": 2}\n')
    Path("m").mkdir()
    shutil.copy(next((ROOT / "configs" / "models").glob("Qwen3-0.6B*")), "m/config.json")
    zero_weights(Path("m"))
    Path("m/tokenizer.json").touch()
    points = make_points("run.yaml", [], ["optimizer.lr=1e-6,3e-6,9e-6"])
    made = create_sweep(points, [make_plan(point.cfg) for point in points], False, TRAINER)
    for run in made.runs:
        run.job_script.write_text(f"exec {' '.join(trainer(run, BODY))}\n")
    return made


def test_every_combination_is_a_point_and_the_last_key_varies_fastest(new_run) -> None:
    new_run("other")
    points = make_points("run.yaml", ["name=s"], ["lr=1e-6,3e-6", "rewards.reward_weights=[1.0],[0.5]", "seed=1,2"])
    assert [tuple(point.values.values()) for point in points][:3] == [
        (1e-6, [1.0], 1),
        (1e-6, [1.0], 2),
        (1e-6, [0.5], 1),
    ]
    assert [point.cfg.name for point in points] == [f"s-{k}" for k in range(8)]
    assert (points[7].cfg.optimizer.lr, points[7].cfg.rewards.reward_weights, points[7].cfg.seed) == (3e-6, [0.5], 2)
    assert str(points[2]) == "lr=1e-06 rewards.reward_weights=[0.5] seed=1"


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["C"])),  # YAML has no bare control characters
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    )
)
def test_a_value_survives_its_way_through_an_override(value) -> None:
    assert parse_value(show_value(value)) == value


@pytest.mark.parametrize(
    ("sweeps", "expected"),
    [
        (["lr"], "KEY=VALUE,VALUE"),
        (["lr="], "lacks a value"),
        (["lr=1,,2"], "not YAML"),
        (["lr=1e-6,"], None),
        (["lrr=1,2"], "optimizer.lr"),
        (["name=a,b"], "names its runs"),
        (["profile=a,b"], "one cluster"),
        (["lr=1", "optimizer.lr=2"], "optimizer.lr is given twice"),
        (["lr=1e-5,0.00001"], "the same run"),
        (["seed=1,2", "micro_batch_size=1,3"], "the point seed=1 micro_batch_size=3"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_is_written(new_run, cli, capsys, sweeps, expected) -> None:
    folder = new_run("other").path.parent
    code = cli("submit", "run.yaml", "--dry-run", *(word for text in sweeps for word in ("--sweep", text)))
    assert code == (2 if expected else 0)
    if expected:
        assert expected in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == ["other"]


def test_a_secret_in_a_sweep_is_not_shown(new_run, cli, capsys) -> None:
    new_run("other")
    assert cli("submit", "run.yaml", "--dry-run", "--sweep", "reward_params={own: {api_key: hush-0123456}},{}") == 2
    said = capsys.readouterr().err
    assert "rewards.reward_params.own.api_key: holds a secret" in said and "hush" not in said


def test_one_array_job_cannot_hold_different_requests(new_run, cli, capsys) -> None:
    new_run("other")
    changes = ["cluster.profile=slurm", "global_batch_size=64", "micro_batch_size=1"]
    assert cli("submit", "run.yaml", *changes, "--sweep", "nodes=1,2", "--dry-run") == 2
    assert "nodes=1 asks Slurm for '--nodes=1' and nodes=2 for '--nodes=2'" in capsys.readouterr().err


def test_the_array_script_runs_the_script_of_its_point(new_run, tmp_path: Path) -> None:
    new_run("other")
    hostile = tmp_path / "a b `touch pwned`; touch pwned; 'q' ü"
    points = make_points("run.yaml", [f"output_dir={json.dumps(str(hostile))}", "profile=slurm"], ["lr=1e-6,3e-6"])
    script = array_script(points)
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=small\n#SBATCH --array=0-1\n#SBATCH --nodes=1\n")
    assert "#SBATCH --output=small-%a/slurm-%A_%a.log\n" in script
    made = create_sweep(points, [make_plan(point.cfg) for point in points], False, TRAINER)
    assert made.job_script.read_text() == script
    for run in made.runs:
        run.job_script.write_text(f"echo {run.path.name}\n")
    env = {"SLURM_ARRAY_TASK_ID": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", made.job_script], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("small-1\n", "")
    assert not (tmp_path / "pwned").exists()


def test_points_run_one_after_the_other_and_are_compared(sweep: Sweep, cli, capsys) -> None:
    assert cli("resume", sweep.path) == 1  # one of them fails, and the others go on
    capsys.readouterr()
    assert cli("status", sweep.path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["keys"] == ["optimizer.lr"]
    assert [point["values"] for point in found["points"]] == [{"optimizer.lr": lr} for lr in (1e-6, 3e-6, 9e-6)]
    assert [point["state"] for point in found["points"]] == ["success", "crash", "success"]
    assert cli("resume", sweep.path) == 0  # only what is not finished
    assert [len(list(run.path.glob("attempt_*"))) for run in sweep.runs] == [1, 2, 1]
    capsys.readouterr()
    assert cli("list", sweep.path) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:5] == ["name", "lr", "state", "step", "reward"]
    assert rows[2][:5] == ["small-1", "3e-06", "success", "1/4", "0.300"]
    assert cli("list") == 0
    assert "small  sweep of 3: 3 success; best reward 0.900" in capsys.readouterr().out
    assert cli("resume", sweep.path) == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_a_sweep_whose_model_is_gone_is_not_resumed(sweep: Sweep, cli, capsys) -> None:
    Path("m/model.safetensors").unlink()
    assert cli("resume", sweep.path) == 2
    assert "lacks weights" in capsys.readouterr().err
    assert not any(run.job_file.exists() for run in sweep.runs)


def test_a_damaged_point_is_named_and_the_others_are_shown(sweep: Sweep, cli, capsys) -> None:
    sweep.runs[1].run_file.unlink()
    assert cli("status", sweep.path) == 0
    out = capsys.readouterr().out
    assert "small-0" in out and "small-2" in out and "small-1: no run" in out
    (sweep.path / "sweep.json").write_text('{"keys": 1}')
    assert cli("status", sweep.path) == 2
    assert "sweep.json is damaged" in capsys.readouterr().err
    assert cli("list") == 0
    out = capsys.readouterr().out
    assert "passed over runs/small: " in out and "sweep.json is damaged" in out


def test_a_sweep_is_no_run(sweep: Sweep, cli, capsys) -> None:
    assert cli("logs", sweep.path) == 2
    assert "small-0, small-1, small-2" in capsys.readouterr().err
    assert cli("cancel", sweep.path) == 0
    assert capsys.readouterr().out.count("is over already: prepared") == 3
    assert cli("submit", "run.yaml", "--sweep", "lr=1e-6,2e-6", "--dry-run") == 2  # the folder is taken
    assert cli("submit", "run.yaml", "--sweep", "lr=1e-6,2e-6", "--dry-run", "--fresh") == 0
    assert sweep.path.with_name("small.old-1").is_dir()
    assert load_run(sweep.runs[1].run_file).optimizer.lr == 2e-6
