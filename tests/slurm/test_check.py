"""The check of the nodes at the start of an attempt, inside the allocation."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from lightruns import ended, everything

from grpo_hpc.jobs.executors import queue
from grpo_hpc.jobs.prepare import stored_profile
from grpo_hpc.runs.attempts import history

CHECK = {"enabled": True, "free_gib": 0.01}


def reason(run) -> str:
    (attempt,) = ended(run, 1)
    assert attempt.state == "preflight", everything(run)
    assert "\n" not in attempt.reason
    return attempt.reason


def test_good_nodes_pass_and_leave_their_reports(submit):
    run = submit(profile={"preflight": CHECK})
    (attempt,) = ended(run, 1)
    assert attempt.state == "success", everything(run)
    reports = {path.stem: json.loads(path.read_text()) for path in attempt.folder(run).glob("check/*.json")}
    assert reports.keys() == {"node1", "node2"}
    assert all(report["problems"] == [] and report["bandwidth_gbps"] > 0 for report in reports.values())


def test_a_slow_network_ends_the_job(submit):
    run = submit(profile={"preflight": CHECK | {"bandwidth_gbps": 1e6}})
    assert "GB/s, the profile demands 1e+06" in reason(run)
    assert not list(run.path.glob("*/where*"))  # nothing was trained


def test_what_is_missing_is_named_with_its_node(submit, tmp_path):
    run = submit(profile={"preflight": CHECK | {"free_gib": 1e6}})
    assert re.fullmatch(r"node1: \S+ has [\d.]+ GiB free, 1e\+06 are needed", reason(run))
    gone = submit("second", profile={"preflight": CHECK}, start=False)
    (tmp_path / "model" / "config.json").unlink()
    queue(gone, stored_profile(gone))
    assert reason(gone) == f"node1: {tmp_path}/model/config.json cannot be read"


def test_a_checkpoint_that_is_gone_is_named(submit):
    run = submit(profile={"preflight": CHECK}, start=False)
    run.checkpoints.mkdir()
    for name in ("step_2", "step_10"):
        (run.checkpoints / name).symlink_to("/nowhere")
    queue(run, stored_profile(run))
    assert reason(run) == f"node1: {run.checkpoints}/step_10 cannot be read"


def test_gpus_that_a_node_lacks_are_counted(submit):
    run = submit(profile={"preflight": CHECK}, sections={"resources": {"device": "cuda"}})
    assert re.match(r"node1: 0 of 2 GPUs are visible", reason(run))


def broken_on(node: str, tmp_path: Path, how: str) -> dict[str, str]:
    """Keys of a profile whose Python first runs the shell command ``how`` on ``node``, in a mount namespace."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    inner = f'{how}; exec {sys.executable} "$@"'
    elsewhere = f'exec {sys.executable} "$@"'
    python.write_text(f"""#!/bin/bash
if [ "$SLURMD_NODENAME" = {node} ]; then exec unshare --mount bash -c {shlex.quote(inner)} python "$@"; fi
{elsewhere}
""")
    python.chmod(0o755)
    return {"python": str(python)}


def test_a_folder_that_is_not_shared_names_the_node(submit, tmp_path):
    how = f"mkdir -p {tmp_path}/elsewhere latest/check && mount --bind {tmp_path}/elsewhere latest/check"
    run = submit(profile={"preflight": CHECK, **broken_on("node2", tmp_path, how)})
    assert reason(run).startswith("node2: ") and reason(run).endswith("it is not shared")


def test_a_name_that_does_not_resolve_names_the_node(submit, tmp_path):
    how = "mount --bind /dev/null /etc/hosts"
    run = submit(profile={"preflight": CHECK | {"seconds": 30}, **broken_on("node2", tmp_path, how)})
    assert reason(run).startswith("node2: the name node1 does not resolve")


def test_a_clock_that_is_off_names_the_node(submit, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() + 60\n")
    how = f"export PYTHONPATH={tmp_path}:$PYTHONPATH"
    run = submit(profile={"preflight": CHECK, **broken_on("node2", tmp_path, how)})
    assert re.fullmatch(r"node2: its clock is \+(59|60)\.\d s off that of node1", reason(run))


def test_a_node_that_hangs_is_named_after_a_while(submit, tmp_path):
    run = submit(profile={"preflight": CHECK | {"seconds": 6}, **broken_on("node2", tmp_path, "sleep 100")})
    assert reason(run).startswith("node2: no report")


def test_a_missing_image_names_node_and_reason(submit, tmp_path):
    image = str(tmp_path / "gone.sif")
    run = submit(profile={"preflight": CHECK, "runtime": "apptainer", "image": image})
    assert reason(run).startswith("node1: no report; ")
    assert "gone.sif" in reason(run)


def test_no_healthy_node_is_left_out_where_nobody_got_through(submit, tmp_path):
    """A network that none of them has: the check names no node, and the next job may have the same ones."""
    check = CHECK | {"exclude_node": True, "seconds": 60}
    broken = {"environment": {"GLOO_SOCKET_IFNAME": "nothere0"}}
    run = submit(run={"max_failures": 2}, profile={"preflight": check, **broken})
    first, second = ended(run, 2)
    assert first.state == second.state == "preflight", everything(run)
    assert first.reason.startswith("no node by itself: the all-reduce over all ranks failed")
    assert first.nodes == second.nodes == ["node1", "node2"]


@pytest.mark.parametrize("executor", ["slurm", "submitit"])
def test_a_bad_node_can_be_excluded(submit, tmp_path, executor):
    check = CHECK | {"exclude_node": True, "seconds": 60}
    broken = broken_on("node1", tmp_path, "exit 7")
    run = submit(run={"executor": executor}, profile={"preflight": check, **broken})
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("preflight", "success"), everything(run)
    assert first.reason.startswith("node1: ")
    assert "node1" not in second.nodes and len(second.nodes) == 2
    assert first.job_id != second.job_id
    assert len(history(run)) == 2
