"""A Slurm cluster on this machine, raised for the session, and runs that are submitted to it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightruns import empty_queue, prepare

from grpo_hpc.jobs.executors import queue
from grpo_hpc.jobs.prepare import stored_profile
from grpo_hpc.runs.run_dir import RunDir

ROOT = Path(__file__).parents[2]
TOOLS, CONTAINERS = ROOT / "tools" / "slurm", ROOT / "tools" / "containers"


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """Four nodes; the commands of this process and of its children talk to it."""
    subprocess.run([TOOLS / "install.sh"], check=True)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:
        state = Path(folder) / "s"
        changed = {"SLURM_CONF": str(state / "slurm.conf"), "PYTHONPATH": str(ROOT)}
        before = {name: os.environ.get(name) for name in changed}
        try:
            subprocess.run([TOOLS / "cluster.sh", "up", state], check=True, stdout=subprocess.DEVNULL)
            os.environ.update(changed)
            yield
        finally:
            subprocess.run([TOOLS / "cluster.sh", "down", state], check=True)
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture(autouse=True)
def leave_no_jobs() -> Iterator[None]:
    """A failed test must not disturb the next one."""
    yield
    empty_queue()


BASE = "localhost/grpo-base"
CACHE = Path.home() / ".cache" / "grpo-hpc-tests"


def install(runtime: str) -> None:
    subprocess.run([CONTAINERS / "install.sh", runtime], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def base_tar() -> Path:
    subprocess.run([CONTAINERS / "base_image.sh", CACHE / "base.tar"], check=True)
    return CACHE / "base.tar"


@pytest.fixture(scope="session")
def podman_image(base_tar: Path) -> str:
    install("podman")
    subprocess.run(["podman", "import", "-q", base_tar, BASE], check=True, stdout=subprocess.DEVNULL)
    return BASE


@pytest.fixture(scope="session")
def apptainer_image(podman_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    install("apptainer")
    folder = tmp_path_factory.mktemp("image")
    subprocess.run(["podman", "save", "-q", "-o", folder / "base.tar", podman_image], check=True)
    fast = ["--fakeroot", "--mksquashfs-args", "-comp zstd -Xcompression-level 1"]
    build = ["apptainer", "-q", "build", *fast, folder / "base.sif", f"docker-archive:{folder / 'base.tar'}"]
    subprocess.run(build, check=True)
    return str(folder / "base.sif")


@pytest.fixture(scope="session")
def docker_image(base_tar: Path) -> Iterator[str]:
    """The image in a Docker daemon of our own, which jobs find by ``DOCKER_HOST``."""
    install("docker")
    folder = Path("/tmp") / f"grpo-hpc-docker-{os.getpid()}"  # sockets want a short path
    started = subprocess.run([CONTAINERS / "dockerd.sh", "start", folder], capture_output=True, text=True, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", started.stdout.strip())
        subprocess.run(["docker", "import", base_tar, BASE], check=True, stdout=subprocess.DEVNULL)
        yield BASE
    subprocess.run([CONTAINERS / "dockerd.sh", "stop", folder], check=True)
    subprocess.run(["rm", "-rf", folder], check=True)


Submit = Callable[..., RunDir]


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """``submit(steps=3, profile={...}, run={...})``: a run of the payload, 2 nodes x 2 ranks, put into the queue."""

    def make(
        name: str = "light",
        profile: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        start: bool = True,
        folder: str = "runs",
        sections: dict[str, dict[str, Any]] | None = None,
        **payload: Any,
    ) -> RunDir:
        run_dir = prepare(tmp_path, name, {"cluster": run or {}, **(sections or {})}, profile or {}, folder)
        (run_dir.path / "payload.json").write_text(json.dumps({"steps": 3, "pause": 0.05, **payload}))
        if start:
            queue(run_dir, stored_profile(run_dir))
        return run_dir

    return make
