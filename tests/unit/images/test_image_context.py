from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

import grpo_hpc
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.images import build
from grpo_hpc.images.context import fill_context, missing_wheels, target_options, use_wheels
from grpo_hpc.images.spec import ImageSpec


@pytest.fixture
def image(tmp_path: Path) -> ImageSpec:
    lock = tmp_path / "image.lock"
    lock.write_text("torch==2.13.0\nPy_YAML.x==6.0.3\nrich==15.0.0\n")
    values = {"summary": "x", "base": "x", "python": "3.11", "device": "cpu", "lock": str(lock)}
    return ImageSpec.model_validate({**values, "source_builds": ["from-source==1.2"]})


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in (
        "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl",
        "py_yaml_x-6.0.3-cp311-cp311-manylinux_2_17_x86_64.whl",
        "rich-15.0.0-py3-none-any.whl",
        "from_source-1.2.tar.gz",
    ):
        (folder / name).touch()
    return folder


def test_a_complete_folder_lacks_nothing(image, wheels):
    assert missing_wheels(wheels, image) == []


@pytest.mark.parametrize("gone", ["torch", "from_source"])
def test_what_is_missing_is_named_before_anything_is_built(image, wheels, gone):
    next(wheels.glob(f"{gone}*")).unlink()
    with pytest.raises(EnvironmentProblem, match=rf"lacks 1 of 4 packages: {gone.replace('_', '-')}=="):
        use_wheels(wheels, image)
    assert not (wheels / "pip.conf").exists()


def test_another_version_does_not_count(image, wheels):
    (wheels / "rich-15.0.0-py3-none-any.whl").rename(wheels / "rich-14.0.0-py3-none-any.whl")
    assert missing_wheels(wheels, image) == ["rich"]


def test_the_context_holds_pins_settings_and_the_project(image, wheels, tmp_path):
    (wheels / "project").mkdir()
    stale = wheels / "project" / f"grpo_hpc-{grpo_hpc.__version__}-py3-none-any.whl"
    stale.write_text("an old one")
    use_wheels(wheels, image)
    assert (wheels / "requirements.txt").read_text() == Path(image.lock).read_text()
    assert "no-index = true" in (wheels / "pip.conf").read_text()
    with zipfile.ZipFile(stale) as wheel:
        shipped = {name.removeprefix("grpo_hpc/_shipped/") for name in wheel.namelist() if "_shipped" in name}
    assert {"containers/image.j2", "containers/versions.yaml", "containers/gpu.lock", "tools/env/cpu.lock"} <= shipped

    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\ntimeout = 7\n")
    fill_context(tmp_path / "context", image, settings)
    assert (tmp_path / "context" / "pip.conf").read_text() == settings.read_text()


def test_wheels_are_chosen_for_the_image_and_not_this_machine(image):
    options = target_options(image.model_copy(update={"python": "3.12"}))
    assert options[options.index("--python-version") + 1] == "3.12"
    assert "cp312" in options
    assert "cp311" not in options
    assert any("manylinux_2_39" in option for option in options)
    assert not any("manylinux_2_39" in option for option in target_options(image))


def test_the_build_commands():
    context = Path("/c")
    assert build.build_command("apptainer", context / "build.def", context, "/o.sif", ["--fakeroot"]) == [
        *("apptainer", "build", "--force", "--fakeroot", "/o.sif", "/c/build.def")
    ]
    assert build.build_command("podman", context / "build.Dockerfile", context, "a:b") == [
        *("podman", "build", "--network=host", "--tag", "a:b", "--file", "/c/build.Dockerfile", "/c")
    ]


def test_a_failed_build_is_an_error_with_its_code(image, wheels, tmp_path, monkeypatch):
    tool = tmp_path / "podman"
    tool.write_text("#!/bin/sh\nexit 125\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(EnvironmentProblem, match="podman build ended with code 125"):
        build.build("podman", image, "FROM x\n", "x", wheels=wheels)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentProblem, match="podman is not installed"):
        build.build("podman", image, "FROM x\n", "x", wheels=wheels)
