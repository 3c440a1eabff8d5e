"""The wheel that goes into an image, packed from an installation as `pip install .` leaves it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from grpo_hpc.images.own_wheel import own_wheel

ROOT = Path(__file__).parents[3]


def test_an_installed_package_is_packed_as_its_wheel_was(tmp_path):
    for name in ("built", "packed"):
        (tmp_path / name).mkdir()
    own_wheel(tmp_path / "built")
    built = next((tmp_path / "built").iterdir())
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(built)], check=True)
    program = "import sys, pathlib, grpo_hpc.images.own_wheel as w; w.own_wheel(pathlib.Path(sys.argv[1]))"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "packed")], check=True, cwd=tmp_path, env=env)
    packed = next((tmp_path / "packed").iterdir())

    assert packed.name == built.name
    assert contents(packed) == contents(built)
    subprocess.run([*pip, "--target", str(tmp_path / "again"), str(packed)], check=True)
    assert (tmp_path / "again" / "grpo_hpc" / "_shipped" / "containers" / "versions.yaml").is_file()


def contents(wheel: Path) -> dict[str, list[bytes]]:
    with zipfile.ZipFile(wheel) as file:
        return {name: sorted(file.read(name).splitlines()) for name in file.namelist()}


def test_older_wheels_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_hpc.images.own_wheel.pip", lambda *_: None)
    (tmp_path / "grpo_hpc-0.0.0-py3-none-any.whl").touch()
    own_wheel(tmp_path)
    assert not list(tmp_path.iterdir())
