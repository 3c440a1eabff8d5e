from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest

import grpo_hpc
from grpo_hpc.cli import main
from grpo_hpc.config import load_run
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.images import probe
from grpo_hpc.images.check import compare, failed, image_name, probe_environment
from grpo_hpc.images.spec import ImageSpec

ROOT = Path(__file__).parents[3]


@pytest.fixture
def image(tmp_path: Path) -> ImageSpec:
    lock = tmp_path / "image.lock"
    lock.write_text("torch==2.11.0\nSome_Package==1.0  # a remark\nnvidia-nccl-cu13==2.28.9\n")
    values = {"summary": "x", "base": "x", "python": "3.12", "device": "cuda", "pins": ["torch==2.11.0"]}
    return ImageSpec.model_validate({**values, "lock": str(lock), "imports": ["torch"]})


@pytest.fixture
def facts() -> dict:
    """Of a machine on which everything is right."""
    gpu = {"name": "NVIDIA H100", "memory_gib": 79.2}
    return {
        "image": "gpu",
        "python": "3.12.3",
        "libc": "glibc 2.39",
        "packages": {
            "grpo-hpc": grpo_hpc.__version__,
            "torch": "2.11.0+cu130",
            "some-package": "1.0",
            "nvidia-nccl-cu13": "2.28.9",
        },
        "imports": {"torch": {"error": None, "seconds": 2.0}},
        "torch": {"cuda": "13.0", "cudnn": 91900, "nccl": "2.28.9", "gpus": [gpu] * 8},
        "driver": "580.82.07",
        "shm_gib": 500.0,
        "paths": {},
    }


def run_file(facts: dict, *overrides: str):
    cfg = load_run(ROOT / "configs/quickstart_gpu.yaml", overrides)
    paths = [cfg.model.path, cfg.data.train, cfg.data.eval, cfg.output_dir]
    facts["paths"] = {path: {"readable": True, "writable": True} for path in paths}
    return cfg


def wrong(facts: dict, image: ImageSpec, cfg=None) -> list[str]:
    return [finding.what for finding in compare(facts, image, cfg) if finding.verdict == "wrong"]


def test_nothing_is_wrong_with_a_good_image(facts, image):
    assert wrong(facts, image) == []
    assert wrong(facts, image, run_file(facts, "nproc_per_node=8")) == []


@pytest.mark.parametrize(
    ("where", "value", "what"),
    [
        (("python",), "3.11.2", ["Python"]),
        (("packages", "torch"), "2.10.0", ["torch", "packages of the lock"]),
        (("packages", "some-package"), "2.0", ["some-package", "packages of the lock"]),
        (("packages", "grpo-hpc"), "0.0.1", ["grpo-hpc", "packages of the lock"]),
        (("imports", "torch", "error"), "ImportError: libcudart", ["import torch"]),
        (("torch", "cuda"), None, ["torch build"]),
        (("torch", "nccl"), "2.27.3", ["NCCL that torch loads"]),
        (("torch", "gpus"), [], ["GPUs"]),
        (("torch", "gpus"), [{"name": "x", "memory_gib": 1}] * 7, ["GPUs"]),
        (("paths", "data/addition/train.jsonl", "readable"), False, ["data/addition/train.jsonl"]),
        (("paths", "runs", "writable"), False, ["runs"]),
    ],
)
def test_one_thing_wrong_is_found_and_nothing_else(facts, image, where, value, what):
    cfg = run_file(facts, "nproc_per_node=8")
    changed = deepcopy(facts)
    place = changed
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    assert wrong(changed, image, cfg) == what


def test_a_missing_package_is_wrong(facts, image):
    del facts["packages"]["some-package"]
    assert wrong(facts, image) == ["some-package", "packages of the lock"]


def test_a_run_for_another_device_is_wrong(facts, image):
    cfg = load_run(ROOT / "configs/quickstart.yaml")
    facts["paths"] = {
        p: {"readable": True, "writable": True} for p in (cfg.model.path, cfg.data.train, cfg.data.eval, cfg.output_dir)
    }
    assert wrong(facts, image, cfg) == ["resources.device"]


def test_without_a_run_no_gpu_is_a_note(facts, image):
    facts["torch"]["gpus"], facts["driver"], facts["shm_gib"] = [], None, 0.06
    findings = compare(facts, image, None)
    assert not failed(findings)
    assert [f.what for f in findings if f.verdict == "note"] == ["NVIDIA driver", "GPUs", "/dev/shm"]


def test_the_probe_tells_what_imports_and_what_does_not(image, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "yaml.py").write_text("raise ImportError('this is the working directory')\n")
    monkeypatch.chdir(checkout)
    (tmp_path / "crashes.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    python = ["env", f"PYTHONPATH={tmp_path}", sys.executable]
    asked = image.model_copy(update={"imports": ["yaml", "no_such_module", "crashes"]})
    facts = probe_environment(python, asked, run_file({}, f"output_dir={tmp_path}/new/folder"))
    assert facts["imports"]["yaml"]["error"] is None
    assert facts["imports"]["no_such_module"]["error"] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert facts["imports"]["crashes"]["error"] == "killed by signal 11"
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["pyyaml"]
    assert facts["paths"][f"{tmp_path}/new/folder"]["writable"]


@pytest.mark.parametrize(
    "kind", ["NVIDIA UNIX x86_64 Kernel Module", "NVIDIA UNIX Open Kernel Module for x86_64", "NVIDIA UNIX aarch64"]
)
def test_the_drivers_version_is_read(kind):
    text = f"NVRM version: {kind}  580.82.07  Fri Aug 15 2025\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0)\n"
    assert probe._driver_version(text) == "580.82.07"
    assert probe._driver_version("no number here") is None


def test_an_image_that_cannot_run_says_why(image):
    with pytest.raises(EnvironmentProblem, match="no-such-runtime is not installed"):
        probe_environment(["no-such-runtime", "python3"], image, None)
    with pytest.raises(EnvironmentProblem, match="no such image here"):
        probe_environment(["sh", "-c", "echo no such image here >&2; exit 125"], image, None)


def test_the_command_ends_with_1_and_its_json_is_json_alone(image, tmp_path, capsys):
    versions = tmp_path / "own.yaml"
    lock = tmp_path / "image.lock"
    text = f"mine: {{summary: x, base: x, python: '3.9', device: cpu, lock: '{lock}', imports: [yaml]}}\n"
    versions.write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["image", "check", "--here", "--name", "mine", "--versions", str(versions), "--json"])
    assert caught.value.code == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is False
    assert {"what": "Python", "wanted": "3.9", "found": shown["facts"]["python"], "verdict": "wrong"} in shown[
        "findings"
    ]


def test_an_image_says_its_name_after_any_greeting():
    greeting = "echo; echo '== PyTorch =='; exec env GRPO_HPC_IMAGE=gpu-ngc \"$@\""
    assert image_name(["sh", "-c", greeting, "sh"]) == "gpu-ngc"
    with pytest.raises(EnvironmentProblem, match="does not say which image"):
        image_name(["env", "-u", "GRPO_HPC_IMAGE"])
