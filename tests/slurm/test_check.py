"""The check of the nodes at the start of an attempt, inside the allocation."""

from __future__ import annotations

import json
import shutil

from lightruns import ended, everything

from grpo_hpc.jobs.attempts import history

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
    run = submit(profile={"preflight": CHECK | {"free_gib": 1e6}}, start=False)
    run2 = submit("second", profile={"preflight": CHECK}, start=False)
    shutil.rmtree(tmp_path / "model")
    from grpo_hpc.jobs.executors import queue
    from grpo_hpc.jobs.prepare import stored_profile

    for each in (run, run2):
        queue(each, stored_profile(each))
    assert reason(run).startswith("node1: ") and "cannot be read" in reason(run)
    assert f"{tmp_path}/model cannot be read" in reason(run2)


def test_a_missing_image_names_node_and_reason(submit, tmp_path):
    image = str(tmp_path / "gone.sif")
    run = submit(profile={"preflight": CHECK, "runtime": "apptainer", "image": image})
    assert reason(run).startswith("node1: no report; ")
    assert "gone.sif" in reason(run)


def test_a_bad_node_can_be_excluded(submit, tmp_path):
    only_here = tmp_path / "bin" / "python"
    only_here.parent.mkdir()
    # an interpreter that does not work on node1
    only_here.write_text(f'#!/bin/bash\n[ "$SLURMD_NODENAME" = node1 ] && exit 7\nexec {shutil.which("python")} "$@"\n')
    only_here.chmod(0o755)
    check = CHECK | {"exclude_node": True, "seconds": 60}
    run = submit(profile={"preflight": check, "python": str(only_here)})
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("preflight", "success"), everything(run)
    assert first.reason.startswith("node1: ")
    assert second.nodes == ["node2", "node3"]
    assert first.job_id != second.job_id
    assert len(history(run)) == 2
