"""The same run in every container runtime that can run on this machine, with hostile paths and a secret."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from lightruns import contained, ended, everything


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with packages and caches of its own, from which the run is submitted."""
    home = tmp_path / "home"
    packages = home / ".local" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "only_on_the_host.py").touch()
    changed = {
        "HOME": home,
        "PYTHONPATH": f"{packages}:{os.environ['PYTHONPATH']}",
        "TRITON_CACHE_DIR": home / "triton",
    }
    for name, value in changed.items():
        monkeypatch.setenv(name, str(value))
    return home


@pytest.mark.parametrize("runtime", ["none", "podman", "apptainer", "docker"])
@pytest.mark.parametrize("executor", ["slurm", "submitit"])
def test_two_nodes_with_two_ranks_each(submit, runtime, executor, request, tmp_path, host):
    secrets = tmp_path / "secrets"
    secrets.write_text('SECRET=it\'s $(a) "secret"\n')
    secrets.chmod(0o600)
    profile = contained(runtime, request) | {"secrets": str(secrets)}
    run = submit(run={"executor": executor}, profile=profile, folder='it\'s `a`; (a), "folder"')
    (attempt,) = ended(run, 1)
    assert attempt.state == "success", everything(run)
    places = [json.loads((attempt.folder(run) / f"where_{rank}.json").read_text()) for rank in range(4)]
    assert [place["SLURMD_NODENAME"] for place in places] == ["node1", "node1", "node2", "node2"]
    assert {place["SECRET"] for place in places} == {'it\'s $(a) "secret"'}
    assert {place["redacted"] for place in places} == {"no key '(secret)'"}, "the ranks know what is secret"
    assert {place["contained"] for place in places} == {runtime != "none"}
    assert {place["model"] for place in places} == {"qwen3"}  # whose files are links to outside of its folder
    assert {place["packages_of_the_host"] for place in places} == {runtime == "none"}
    if runtime != "none":
        assert all(place["user"] and place["home_is_kept"] and place["home"] != str(host) for place in places)
        assert not [place for place in places if str(host) in "".join(place["caches"].values())]
    written = [path for path in run.path.rglob("*") if path.is_file() and "where_" not in path.name]
    assert not [path for path in written if b'"secret"' in path.read_bytes()]
    record = attempt.folder(run) / "environment.json"
    recorded = json.loads(record.read_text())
    assert recorded["SECRET"] == "(secret)" and "SLURM_JOB_ID" in recorded and "TERM" not in recorded
    assert record.stat().st_mode & 0o777 == 0o600
    if runtime != "none":
        assert json.loads(run.lock_file.read_text())["image"]["digest"]
