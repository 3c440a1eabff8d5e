"""What follows from the reports of the nodes; how they are made is tested on Slurm, in tests/slurm/test_check.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_hpc.cluster.profile import Floors
from grpo_hpc.config import RunConfig
from grpo_hpc.jobs.checks.node_reports import TOOK_TOO_LONG, bad_node, report_path

NODES = ["gpu1", "gpu2", "gpu3"]
GOOD = {"free_gib": {"/runs": 50.0}, "problems": [], "arrived": True, "joined": True}
GOOD |= {"clock": 1000.0, "bandwidth_gbps": 90.0, "local_gbps": 200.0}


def found(tmp_path: Path, code: int = 0, said: str = "", nodes: int = 3, **changed: dict | None) -> str | None:
    """The finding about three nodes, with the reports of some of them changed; None is no report."""
    cfg = RunConfig(
        name="run",
        model={"path": "m"},
        data={"train": "t"},
        resources={"nodes": nodes},
        batch={"train_iters": 1},
        rewards={"reward_funcs": ["exact_number"]},
    )
    (tmp_path / "check").mkdir(parents=True)
    (tmp_path / "check.log").write_text(said)
    for node in NODES:
        change = changed.get(node, {})
        if change is not None:
            report_path(tmp_path, node).write_text(json.dumps(GOOD | change))
    bad = bad_node(tmp_path, NODES, cfg, Floors(bandwidth_gbps=50, free_gib=10, clock_skew_s=5), code)
    return None if bad is None else str(bad)


def test_good_nodes(tmp_path):
    assert found(tmp_path) is None


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"problems": ["3 of 8 GPUs are visible"]}, "3 of 8 GPUs are visible"),
        ({"free_gib": {"/runs": 50.0, "/scratch": 9.94}}, "/scratch has 9.9 GiB free, 10 are needed"),
        ({"clock": 1005.5}, "its clock is +5.5 s off that of "),
        ({"clock": 994.5}, "its clock is -5.5 s off that of "),
    ],
)
def test_a_bad_node_is_named(tmp_path, node, change, reason):
    assert found(tmp_path, **{node: change}).startswith(f"{node}: {reason}")


def test_a_slow_network_names_the_slowest_node(tmp_path):
    slow = {"bandwidth_gbps": 49.0}
    changed = {node: {**slow, "local_gbps": 30.0 if node == "gpu2" else 200.0} for node in NODES}
    said = "gpu2: all-reduce over all ranks at 49.00 GB/s, the profile demands 50 (within this node 30.00, "
    assert found(tmp_path, **changed).startswith(said)


def test_a_node_without_a_report(tmp_path):
    said = "FATAL: could not open image gone.sif"
    assert found(tmp_path / "a", 255, said, gpu3=None).endswith(
        f"cannot start the image or write {tmp_path}/a/check: {said}"
    )
    assert found(tmp_path / "b", 0, gpu3=None).endswith("is not seen elsewhere: it is not shared")


@pytest.mark.parametrize(("code", "how"), [(TOOK_TOO_LONG, "timed out"), (1, "failed (exit code 1)")])
def test_an_all_reduce_that_never_ended_names_who_did_not_join(tmp_path, code, how):
    alone = {"joined": False, "bandwidth_gbps": None}
    changed = {"gpu1": {"bandwidth_gbps": None}, "gpu2": {"bandwidth_gbps": None}, "gpu3": alone}
    assert found(tmp_path, code, **changed) == f"gpu3: the all-reduce over all ranks {how}"


def test_a_node_that_did_not_come_to_the_meeting_is_named(tmp_path):
    waiting = {"joined": False, "bandwidth_gbps": None}
    changed = {"gpu1": waiting, "gpu2": waiting | {"arrived": False}, "gpu3": waiting}
    assert found(tmp_path, TOOK_TOO_LONG, **changed) == "gpu2: the all-reduce over all ranks timed out"


@pytest.mark.parametrize("arrived", [True, False])
def test_when_nobody_got_through_no_node_is_named(tmp_path, arrived):
    nobody = {"arrived": arrived, "joined": False, "bandwidth_gbps": None}
    said = found(tmp_path, 1, **dict.fromkeys(NODES, nobody))
    assert said == "no node by itself: the all-reduce over all ranks failed (exit code 1)"


def test_what_a_node_says_comes_before_the_silence_of_others(tmp_path):
    assert (
        found(tmp_path, 1, gpu1=None, gpu3={"problems": ["0 of 8 GPUs are visible"]}) == "gpu3: 0 of 8 GPUs are visible"
    )


def test_too_few_nodes(tmp_path):
    assert found(tmp_path, nodes=4) == "no node by itself: the job has 3 nodes, the run needs 4"
