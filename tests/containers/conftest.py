"""A small image for tests: the base of tools/containers and the base install of this package, built for real.

Run with `make test-containers` as root on Debian 12, which installs the runtimes first: a missing one fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "containers"
CACHE = Path(os.environ.get("GRPO_HPC_TEST_CACHE", "/var/cache/grpo-hpc"))
BASE = "localhost/grpo-base"


def grpo(*args: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command line of this checkout."""
    command = [sys.executable, "-m", "grpo_hpc.cli", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session", name="grpo")
def grpo_fixture() -> Callable[..., subprocess.CompletedProcess[str]]:
    return grpo


@pytest.fixture(scope="session")
def base() -> Path:
    """The base image as a tar of its file system."""
    tar = CACHE / "base.tar"
    subprocess.run([TOOLS / "base_image.sh", tar], check=True)
    return tar


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def base_install(lock: Path) -> list[str]:
    """Lines of ``lock`` that the base install needs, with everything those need in turn."""
    versions = dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)
    names = {normal(name): name for name in versions}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines, found = list(project["dependencies"]), set()
    while lines:
        wanted = Requirement(lines.pop())
        name = normal(wanted.name)
        if name not in found and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
            found.add(name)
            lines += requires(name) or []
    return sorted(f"{names[name]}=={versions[names[name]]}" for name in found)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="session")
def versions(work: Path) -> Path:
    """A list with one image, ``light``: the base install, enough to plan."""
    lock = work / "light.lock"
    lock.write_text("\n".join(base_install(ROOT / "tools/env/cpu.lock")) + "\n")
    click = next(line for line in lock.read_text().splitlines() if line.startswith("click=="))
    light = {"summary": "plans and renders", "base": BASE, "python": "3.11", "device": "cpu", "lock": str(lock)}
    path = work / "versions.yaml"
    path.write_text(yaml.safe_dump({"light": {**light, "pins": [click], "imports": ["grpo_hpc.cli", "yaml"]}}))
    return path


@pytest.fixture(scope="session")
def wheels(work: Path, versions: Path) -> Path:
    """The folder of wheels that the images are built from, without a network."""
    done = grpo("image", "wheels", "light", work / "wheels", "--versions", versions)
    assert done.returncode == 0, done.stderr
    return work / "wheels"


@pytest.fixture(scope="session")
def docker_daemon(work: Path) -> Iterator[None]:
    """Our own Docker daemon, for the docker client of this session."""
    folder = Path("/tmp") / f"grpo-hpc-docker-{os.getpid()}"  # sockets want a short path
    started = subprocess.run([TOOLS / "dockerd.sh", "start", folder], capture_output=True, text=True, check=True)
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = started.stdout.strip()
    yield
    subprocess.run([TOOLS / "dockerd.sh", "stop", folder], check=True)
    subprocess.run(["rm", "-rf", folder], check=True)
    os.environ.pop("DOCKER_HOST") if before is None else os.environ.update(DOCKER_HOST=before)


@pytest.fixture(scope="session")
def podman_light(base: Path, versions: Path, wheels: Path) -> Iterator[str]:
    subprocess.run(["podman", "import", "-q", base, BASE], check=True, stdout=subprocess.DEVNULL)
    tag = "localhost/grpo-hpc:light-test"
    yield built("podman", tag, versions, wheels, "--", "--layers=false")  # leaves nothing but the image
    subprocess.run(["podman", "rmi", "--force", tag], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def docker_light(base: Path, versions: Path, wheels: Path, docker_daemon: None) -> str:
    subprocess.run(["docker", "import", base, BASE], check=True, stdout=subprocess.DEVNULL)
    return built("docker", "localhost/grpo-hpc:light-test", versions, wheels)


@pytest.fixture(scope="session")
def apptainer_light(work: Path, podman_light: str, versions: Path, wheels: Path) -> str:
    """The SIF, from the base as an archive: the form in which an image travels to a cluster without a registry."""
    archive = work / "base.tar"
    subprocess.run(["podman", "save", "-q", "-o", archive, BASE], check=True, stdout=subprocess.DEVNULL)
    fast = ["--", "--fakeroot", "--mksquashfs-args", "-comp zstd -Xcompression-level 1"]
    return built("apptainer", str(work / "light.sif"), versions, wheels, "--base", f"docker-archive:{archive}", *fast)


def built(tool: str, target: str, versions: Path, wheels: Path, *more: str) -> str:
    where = ["--tool", tool, "--target", target, "--wheels", wheels, "--versions", versions]
    done = grpo("image", "build", "light", *where, *more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return target


@pytest.fixture(scope="session", params=["podman", "docker", "apptainer"])
def light(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each runtime and its own build of the image."""
    return request.param, request.getfixturevalue(f"{request.param}_light")
