"""The run files that come with the package: planned, explained, found by name and from an installed wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from grpo_hpc.cli import main
from grpo_hpc.config import load_run
from grpo_hpc.config.library import model_config, purpose, run_files
from grpo_hpc.models.families.counting import count_parameters
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.plan.make import make_plan

ROOT = Path(__file__).parents[3]
# Parameters of the published weights, as the model cards' safetensors headers say.
PARAMETERS = {
    "SmolLM2-135M-Instruct": 134_515_008,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-30B-A3B-Instruct-2507": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
}


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("name", run_files())
def test_it_can_be_planned_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = load_run(name)
    plan = make_plan(cfg)
    assert cfg.name == name
    assert plan.estimate is not None
    assert plan.estimate.verdict == "fits"
    said_of_some = ["groups reach over", "is padded by"]
    if cfg.rollout.environment:
        said_of_some.append("times are those of one turn")
    assert [note for note in plan.warnings if not any(words in note for words in said_of_some)] == []


@pytest.mark.parametrize("name", run_files())
def test_its_head_says_what_it_is_for_and_how_to_use_it(name: str) -> None:
    head = [line for line in run_files()[name].read_text().splitlines() if line.startswith("# ")]
    assert purpose(run_files()[name]) == head[0].removeprefix("# ")
    assert name.startswith("quickstart") or f"# Use: grpo-hpc submit {name}" in head
    assert all(len(line) <= 120 for line in run_files()[name].read_text().splitlines())


def test_model_configurations_have_the_published_parameters() -> None:
    files = sorted(file.stem for file in (ROOT / "configs" / "models").glob("*.json"))
    assert files == sorted(PARAMETERS)
    for name, count in PARAMETERS.items():
        file = model_config(name)
        assert file is not None
        assert count_parameters(read_shape(file)) == count, name


def test_list_and_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("config", "list") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in run_files())
    assert run("config", "copy", "qwen3_0.6b") == 0
    assert run("plan", "qwen3_0.6b.yaml", "train_iters=3") == 0
    capsys.readouterr()
    assert run("config", "copy", "qwen3_0.6b") == 2
    assert "exists already" in capsys.readouterr().err
    assert run("config", "copy", "qwen3_0.7b") == 2
    assert "Did you mean qwen3_0.6b?" in capsys.readouterr().err
    assert run("config", "copy", "qwen3_0.6b", "no/where.yaml") == 2
    assert "no/where.yaml: no such file or directory" in capsys.readouterr().err


def test_a_file_of_that_name_comes_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("qwen3_0.6b").write_text(run_files()["qwen3_0.6b"].read_text().replace("train_iters: 200", "train_iters: 7"))
    assert load_run("qwen3_0.6b").batch.train_iters == 7


def test_an_installed_wheel_has_them(tmp_path: Path) -> None:
    """The wheel is unpacked elsewhere and used from an empty folder."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    subprocess.run(build, cwd=ROOT, check=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "grpo_hpc.cli", "plan", "qwen3_0.6b", "--json"]
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f'"parameters": {PARAMETERS["Qwen3-0.6B"]}' in done.stdout
