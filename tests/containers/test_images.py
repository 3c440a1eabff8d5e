"""Images built, entered and checked by every runtime that this project knows how to build with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

import grpo_hpc
from grpo_hpc.images.build import as_tool
from grpo_hpc.jobs.runtimes import inside

ROOT = Path(__file__).parents[2]


@pytest.fixture
def check(light, versions, grpo):
    """Runs ``image check`` on the image of each runtime; takes further arguments."""
    tool, image = light

    def run(*more, versions=versions, cwd=ROOT):
        return grpo("image", "check", image, "--tool", tool, "--versions", versions, *more, cwd=cwd)

    return run


def test_the_image_is_what_the_list_says(check):
    done = check("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    assert shown["name"] == shown["facts"]["image"] == "light"
    assert shown["facts"]["prefix"] == "/opt/grpo-hpc"
    assert shown["facts"]["packages"]["grpo-hpc"] == grpo_hpc.__version__
    assert shown["facts"]["python"].startswith("3.11.")
    assert {finding["verdict"] for finding in shown["findings"]} == {"ok"}


def test_another_list_is_a_mismatch(check, versions, tmp_path):
    images = yaml.safe_load(versions.read_text())
    lock = tmp_path / "other.lock"
    pinned = Path(images["light"]["lock"]).read_text()
    lock.write_text(pinned.replace("rich==", "rich==99.") + "torch==2.11.0\n")
    images["light"] |= {"lock": str(lock), "imports": ["torch"]}
    other = tmp_path / "versions.yaml"
    other.write_text(yaml.safe_dump(images))
    done = check("--json", versions=other)
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = {f["what"]: f["found"] for f in json.loads(done.stdout)["findings"] if f["verdict"] == "wrong"}
    assert wrong.keys() == {"rich", "torch", "packages of the lock", "import torch"}
    assert wrong["torch"] == "missing"
    assert wrong["import torch"] == "ModuleNotFoundError: No module named 'torch'"


def test_folders_of_a_run_must_be_bound(check, light, tmp_path):
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    for folder in (elsewhere / "model", here):
        folder.mkdir(parents=True)
    (elsewhere / "rows.jsonl").write_text('{"prompt": "1 + 1 ="}\n')
    run = here / "run.yaml"
    run.write_text(
        "name: bound\noutput_dir: out\n"
        f"model: {{path: '{elsewhere}/model', dtype: float32}}\ndata: {{train: '{elsewhere}/rows.jsonl'}}\n"
        "resources: {device: cpu, nproc_per_node: 1}\nbatch: {global_batch_size: 8, train_iters: 1}\n"
        "rewards: {reward_funcs: [exact_number]}\n"
    )
    # Apptainer shows /tmp of its own accord unless it is told not to
    done = check("--run", run, "--bind", elsewhere, cwd=here)
    assert done.returncode == 0, done.stdout + done.stderr
    if light[0] != "apptainer":
        done = check("--run", run, cwd=here)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stdout.count("cannot be read inside the image; bind it") == 2


def test_a_plan_is_the_same_inside(light, grpo, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["plan", "configs/quickstart.yaml", "--json"]
    outside = grpo(*arguments)
    command = [*inside(as_tool(light[0]), light[1], gpus=False), "grpo-hpc", *arguments]
    within = subprocess.run(command, capture_output=True, text=True, check=False)
    assert within.returncode == outside.returncode == 0, within.stderr + outside.stderr
    assert json.loads(within.stdout) == json.loads(outside.stdout)


@pytest.mark.parametrize("tool", ["podman", "apptainer"])
def test_a_missing_image_is_an_error_and_no_mismatch(tool, grpo, versions, tmp_path):
    done = grpo("image", "check", tmp_path / "none.sif", "--tool", tool, "--versions", versions, "--name", "light")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_wheel_that_is_missing_ends_the_build_before_it_begins(grpo, versions, wheels, tmp_path):
    for file in wheels.iterdir():
        if file.is_file() and not file.name.startswith("click-"):
            (tmp_path / file.name).symlink_to(file)
    done = grpo("image", "build", "light", "--tool", "podman", "--wheels", tmp_path, "--versions", versions)
    assert done.returncode == 2
    assert "packages: click==" in done.stderr
