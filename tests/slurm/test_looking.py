"""Looking after runs on a cluster: what status, logs and cancel say is what Slurm says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from lightruns import ended, everything, job, wait_for

from grpo_hpc.jobs import slurm
from grpo_hpc.jobs.attempts import history
from grpo_hpc.jobs.run_dir import RunDir
from grpo_hpc.jobs.standing import standing

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
    assert (found["state"], found["attempt"], found["nodes"]) == ("running", 1, ["node1", "node2"])
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
