"""The same run in every container runtime that can run on this machine, with hostile paths and a secret."""

from __future__ import annotations

import json

import pytest
from lightruns import contained, ended, everything


@pytest.mark.parametrize("runtime", ["none", "podman", "apptainer", "docker"])
@pytest.mark.parametrize("executor", ["slurm", "submitit"])
def test_two_nodes_with_two_ranks_each(submit, runtime, executor, request, tmp_path):
    secrets = tmp_path / "secrets"
    secrets.write_text('SECRET=it\'s $(a) "secret"\n')
    secrets.chmod(0o600)
    profile = contained(runtime, request) | {"secrets": str(secrets)}
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
