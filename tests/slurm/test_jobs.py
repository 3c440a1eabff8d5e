"""Runs that end well, by every executor."""

from __future__ import annotations

import json

import pytest
from lightruns import ended, everything

from grpo_hpc.jobs.run_dir import RunDir


def places(run: RunDir) -> list[dict]:
    return [json.loads((run.latest_attempt() / f"where_{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.parametrize("executor", ["slurm", "submitit"])
def test_two_nodes_with_two_ranks_each(submit, executor):
    run = submit(run={"executor": executor})
    (attempt,) = ended(run, 1)
    assert attempt.state == "success", everything(run)
    assert attempt.nodes == ["node1", "node2"]
    assert (attempt.first_step, attempt.last_step) == (0, 3)
    assert [place["SLURMD_NODENAME"] for place in places(run)] == ["node1", "node1", "node2", "node2"]
