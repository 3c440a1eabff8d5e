"""The same run in every container runtime that can run on this machine, with hostile paths and a secret."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from lightruns import ROOT, ended, everything

BASE = "localhost/grpo-base"
CACHE = Path.home() / ".cache" / "grpo-hpc-tests"


@pytest.fixture(scope="session")
def podman_image() -> str:
    subprocess.run([ROOT / "tools/containers/install.sh", "podman"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([ROOT / "tools/containers/base_image.sh", CACHE / "base.tar"], check=True)
    subprocess.run(["podman", "import", "-q", CACHE / "base.tar", BASE], check=True, stdout=subprocess.DEVNULL)
    return BASE


@pytest.fixture(scope="session")
def apptainer_image(podman_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    subprocess.run([ROOT / "tools/containers/install.sh", "apptainer"], check=True, stdout=subprocess.DEVNULL)
    folder = tmp_path_factory.mktemp("image")
    subprocess.run(["podman", "save", "-q", "-o", folder / "base.tar", podman_image], check=True)
    fast = ["--fakeroot", "--mksquashfs-args", "-comp zstd -Xcompression-level 1"]
    build = ["apptainer", "-q", "build", *fast, folder / "base.sif", f"docker-archive:{folder / 'base.tar'}"]
    subprocess.run(build, check=True)
    return str(folder / "base.sif")


@pytest.mark.parametrize("runtime", ["none", "podman", "apptainer"])
@pytest.mark.parametrize("executor", ["slurm", "submitit"])
def test_two_nodes_with_two_ranks_each(submit, runtime, executor, request, tmp_path):
    secrets = tmp_path / "secrets"
    secrets.write_text('SECRET=it\'s $(a) "secret"\n')
    secrets.chmod(0o600)
    profile = {"secrets": str(secrets)}
    if runtime != "none":
        # this machine's own Python fits an image of the same release
        venv = os.path.realpath(ROOT / ".venv")
        home = os.path.realpath(f"{venv}/bin/python").removesuffix("/bin/python3.11")
        binds = [venv, str(ROOT), *([home] if home != "/usr" else [])]
        profile |= {"runtime": runtime, "image": request.getfixturevalue(f"{runtime}_image"), "binds": binds}
        profile |= {"environment": {"PYTHONPATH": str(ROOT)}}
    run = submit(run={"executor": executor}, profile=profile, folder='it\'s $(a), "folder"')
    (attempt,) = ended(run, 1)
    assert attempt.state == "success", everything(run)
    places = [json.loads((attempt.folder(run) / f"where_{rank}.json").read_text()) for rank in range(4)]
    assert [place["SLURMD_NODENAME"] for place in places] == ["node1", "node1", "node2", "node2"]
    assert {place["SECRET"] for place in places} == {'it\'s $(a) "secret"'}
    assert {place["contained"] for place in places} == {runtime != "none"}
    written = [path for path in run.path.rglob("*") if path.is_file() and "where_" not in path.name]
    assert not [path for path in written if b'"secret"' in path.read_bytes()]
    if runtime != "none":
        assert json.loads(run.lock_file.read_text())["image"]["digest"]
