from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from grpo_hpc.errors import ConfigError
from grpo_hpc.images.spec import image_named, load_images, normalised, pinned

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-ngc"])
def test_the_lock_holds_the_pins(name):
    image = load_images()[name]
    lock = image.requirements()
    assert {package: lock.get(package) for package in pinned(image.pins)} == pinned(image.pins)


@pytest.mark.parametrize(("name", "extra"), [("cpu", "cpu"), ("gpu", "gpu"), ("gpu-ngc", "gpu")])
def test_the_lock_satisfies_the_package(name, extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = load_images()[name].requirements()
    for line in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        wanted = Requirement(line)
        version = lock.get(normalised(wanted.name), "nothing")
        assert version != "nothing", f"{line} is not in the lock; run tools/env/lock_gpu.py"
        assert wanted.specifier.contains(version), f"the lock has {wanted.name} {version}, wanted {line}"


def test_mistakes_are_shown_together_with_their_lines(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "mine:\n  summary: x\n  base: a b\n  python: '3.11'\n  device: gpu\n  lock: x\n  colour: red\nodd: 5\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_images(path)
    message = caught.value.message
    assert "4 mistakes" in message
    unknown = "mine.colour (line 7): unknown key"
    for part in (
        "mine.base (line 3)",
        "mine.device (line 5): must be cpu or cuda",
        unknown,
        "odd (line 8): must be keys",
    ):
        assert part in message


def test_a_secret_in_the_list_is_refused_and_not_shown(tmp_path):
    path = tmp_path / "own.yaml"
    image = "mine: {summary: x, base: a, python: '3.11', device: cpu, lock: b"
    path.write_text(f"{image}, environment: {{HF_TOKEN: hush-0123456}}}}\n")
    with pytest.raises(ConfigError, match=r"mine.environment.HF_TOKEN \(line 1\): holds a secret") as caught:
        load_images(path)
    assert "hush" not in str(caught.value)


def test_an_unknown_image_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'gpu-ngc'"):
        image_named("gpu-ncg", load_images())


def test_a_lock_line_without_a_version_is_refused():
    with pytest.raises(ConfigError, match="fixes no version"):
        pinned(["torch>=2"])


def test_a_missing_lock_is_named(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("mine: {summary: x, base: a, python: '3.11', device: cpu, lock: nowhere.lock}\n")
    with pytest.raises(ConfigError, match=r"nowhere\.lock does not exist"):
        load_images(path)["mine"].requirements()
