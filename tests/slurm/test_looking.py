"""Looking after runs on a cluster: what status, logs and cancel say is what Slurm says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightruns import PAYLOAD, ended, everything, job, wait_for, write_run

from grpo_hpc.cluster import slurm
from grpo_hpc.cluster.profile import find_profile, read_profile
from grpo_hpc.jobs.array import create_sweep, start_sweep
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import standing
from grpo_hpc.runs.sweep import make_points

COMMAND = [sys.executable, "-m", "grpo_hpc.cli"]


def grpo_hpc(*args: object, code: int = 0) -> str:
    done = subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def facts(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(grpo_hpc("status", run.path, "--json"))
    return found


def state(run: RunDir) -> str:
    return standing(run).state


def test_a_run_from_the_queue_to_its_end(submit):
    slurm.call(["sbatch", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 100", "--job-name=blocker"])
    run = submit(steps=25, pause=0.2)
    found = facts(run)
    assert (found["state"], found["attempt"], found["job_ids"]) == ("queued", None, [job(run)])
    assert "Resources" in found["detail"] or "Priority" in found["detail"], found["detail"]
    slurm.call(["scancel", "--name=blocker"])
    wait_for(lambda: standing(run).step >= 2, f"step 2 of {run.path}")
    found = facts(run)
    given = slurm.call(["squeue", "-h", "-o", "%N", "-j", job(run)])
    nodes = slurm.call(["scontrol", "show", "hostnames", given]).split()
    assert (found["state"], found["attempt"], found["nodes"], len(nodes)) == ("running", 1, nodes, 2)
    assert found["seconds_left"] > 0 and found["reward"] is not None
    assert found["logs"] == str(run.path / "attempt_1" / "rank_0.log")
    ended(run, 1)
    found = facts(run)
    assert (found["state"], found["step"], found["total_steps"]) == ("success", 25, 500)
    assert "success" in grpo_hpc("list", run.path.parent)


def test_failures_are_told_with_their_reason(submit):
    crashed = submit("crashed", run={"max_failures": 0}, fault={"kind": "raise", "rank": 2})
    hopeless = submit("hopeless", profile={"python": "/nowhere/python"}, run={"max_failures": 0})
    ended(crashed, 1)
    ended(hopeless, 1)
    found = facts(crashed)
    assert found["state"] == "crash", everything(crashed)
    assert "RuntimeError: the payload was told to fail" in found["last_error"]
    assert found["logs"].endswith("rank_2.log")
    assert "the payload was told to fail" in grpo_hpc("logs", crashed.path)
    assert facts(hopeless)["state"] == "crash"
    assert "/nowhere/python" in grpo_hpc("logs", hopeless.path)


def test_a_job_that_vanished_is_not_shown_as_running(submit):
    run = submit(steps=500, pause=0.1)
    wait_for(lambda: state(run) == "running", "the run to begin")
    slurm.call(["scancel", "--batch", "--signal=KILL", job(run)])  # the supervisor
    wait_for(lambda: state(run) in ("crash", "lost", "node_failure"), "the end to be seen")
    assert history(run)[0].state == "running"  # nobody was left to write how it ended
    assert facts(run)["last_error"]


def test_logs_are_followed_over_a_requeue(submit):
    run = submit(steps=24, pause=0.25)
    wait_for(lambda: standing(run).step >= 3, "step 3")
    follower = subprocess.Popen([*COMMAND, "logs", run.path, "-f", "--json"], stdout=subprocess.PIPE, text=True)
    slurm.call(["scancel", "--signal=USR2", "--full", job(run)])  # as before the wall time
    said, _ = follower.communicate(timeout=120)
    assert follower.returncode == 0
    lines = [json.loads(line) for line in said.splitlines()]
    steps = [(line["attempt"], line["line"]) for line in lines if line["line"].startswith("step ")]
    assert [text for _, text in steps] == [f"step {number}" for number in range(1, 25)], everything(run)
    assert {attempt for attempt, _ in steps} == {1, 2}
    assert [attempt.state for attempt in history(run)] == ["timeout", "success"]


def test_cancel_is_final_for_what_waits_and_what_runs(submit):
    running = submit("running", steps=500, pause=0.1)
    wait_for(lambda: standing(running).step >= 2, "step 2")
    slurm.call(["sbatch", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 100", "--job-name=blocker"])
    waiting = submit("waiting")
    assert (state(running), state(waiting)) == ("running", "queued")
    for run in (waiting, running, running):
        assert json.loads(grpo_hpc("cancel", run.path, "--json"))["state"] == "cancelled", everything(run)
        assert slurm.call(["squeue", "-h", "-j", job(run), "-t", "PD,R"]) == ""
    (only,) = history(running)
    assert (only.state, only.exit_code) == ("cancelled", 0), everything(running)  # it saved
    assert history(waiting) == []
    assert state(waiting) == "cancelled"
    slurm.call(["scancel", "--name=blocker"])


@pytest.mark.parametrize("executor", ["slurm", "submitit"])
def test_a_sweep_is_one_array_job_whose_points_are_runs(tmp_path: Path, executor: str):
    small = {"resources": {"nodes": 1}, "cluster": {"max_failures": 0}}
    file = write_run(tmp_path, "lr", small, {"executor": executor}, "runs")
    points = make_points(str(file), [], ["optimizer.lr=1e-6,3e-6"])
    sweep = create_sweep(points, [make_plan(point.cfg) for point in points], False, (str(PAYLOAD),))
    first, second = sweep.runs
    long = {"steps": 30, "pause": 0.2}
    (first.path / "payload.json").write_text(json.dumps(long))
    (second.path / "payload.json").write_text(json.dumps({"steps": 3, "pause": 0, "fault": {"kind": "raise"}}))
    start_sweep(sweep, [0, 1])
    arrays = {job(run).partition("_")[0] for run in sweep.runs}
    assert len(arrays) == 1
    wait_for(lambda: standing(first).step >= 2, f"step 2\n{everything(first)}")
    whole = ["--full"] if executor == "slurm" else []  # submitit's script asks for the signal to reach the steps only
    slurm.call(["scancel", "--signal=USR2", *whole, job(first)])  # this point alone saves and is requeued
    assert [attempt.state for attempt in ended(first, 2)] == ["timeout", "success"], everything(first)
    assert {attempt.job_id for attempt in history(first)} == {job(first)}
    assert [attempt.state for attempt in ended(second, 1)] == ["crash"]
    found = json.loads(grpo_hpc("status", sweep.path, "--json"))
    rows = [(point["values"]["optimizer.lr"], point["state"], point["step"]) for point in found["points"]]
    assert rows == [(1e-6, "success", 30), (3e-6, "crash", 1)]
    assert "RuntimeError: the payload was told to fail" in found["points"][1]["last_error"]
    (second.path / "payload.json").write_text(json.dumps({"steps": 3, "pause": 0}))
    wait_for(lambda: state(second) == "crash", "its job to end")
    start_sweep(sweep, [1])
    assert [attempt.state for attempt in ended(second, 2)] == ["crash", "success"], everything(second)
    assert grpo_hpc("list", sweep.path).count("success") == 2


def test_a_sweep_that_somebody_cancels_in_the_queue(tmp_path: Path):
    slurm.call(["sbatch", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 100"])
    points = make_points(str(write_run(tmp_path, "lr", {}, {}, "runs")), [], ["optimizer.lr=1e-6,3e-6,1e-5"])
    sweep = create_sweep(points, [make_plan(point.cfg) for point in points], False, (str(PAYLOAD),))
    start_sweep(sweep, [0, 2])
    assert [state(run) for run in sweep.runs] == ["queued", "prepared", "queued"]
    slurm.call(["scancel", job(sweep.runs[0]).partition("_")[0]])
    wait_for(lambda: [state(run) for run in sweep.runs] == ["cancelled", "prepared", "cancelled"], "the end to be seen")


def test_a_profile_is_made_from_what_slurm_says(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRPO_HPC_PROFILES", str(tmp_path / "profiles"))
    grpo_hpc("cluster", "add", "here", "--yes", "--runtime=none")
    found = read_profile(find_profile("here"))
    assert (found.executor, found.partition, found.gres, found.requeue) == ("slurm", "debug", "gpus-per-node", True)
    assert (found.gpus_per_node, found.gpu_type, found.time_limit, found.exclusive) == (2, "fake", None, False)
    grpo_hpc("cluster", "add", "typo", "--yes", "--runtime=none", "--partition=debgu", code=2)
    wrong = subprocess.run(
        [*COMMAND, "cluster", "add", "typo", "--partition=hihg", "--yes"], capture_output=True, text=True
    )
    assert "Did you mean 'high'? There are debug, low, drop, high." in wrong.stderr
    file = write_run(tmp_path, "with-it", {"cluster": {"profile": "here"}, "resources": {"nodes": 1}}, {}, "runs")
    slurm.call(["sbatch", "--test-only", str(_script(file))])


def _script(file: Path) -> Path:
    """The script of a run on the detected cluster."""
    grpo_hpc("submit", file, "--dry-run")
    return file.parent / "runs" / file.stem / "job.sh"
