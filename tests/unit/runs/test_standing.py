"""How runs stand: on directories that the launcher itself wrote, and on what Slurm may say of jobs."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_hpc.cluster.job_states import JobStates, QueuedJob, tasks
from grpo_hpc.jobs.local import run_local
from grpo_hpc.runs.attempts import Attempt, history
from grpo_hpc.runs.holder import Holder
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.show_standing import console, show_standing
from grpo_hpc.runs.standing import judge_state, standing
from grpo_hpc.runs.submissions import Submission

DONE = 'for i in range(1, 5): step(i, i / 4)\nlog.finished({"lines": []})'


def test_a_run_that_was_never_started(run: RunDir) -> None:
    found = standing(run)
    assert (found.state, found.attempt, found.step, found.total_steps) == ("prepared", None, 0, 4)
    assert (found.reward, found.seconds_left, found.logs, found.last_error) == (None, None, None, "")


def test_a_finished_run(run: RunDir, trainer) -> None:
    run_local(run, trainer(run, DONE))
    found = standing(run)
    assert (found.state, found.step, found.attempt, found.executor) == ("success", 4, 1, "local")
    assert found.rewards == [0.25, 0.5, 0.75, 1.0]
    assert (found.reward, found.held_out) == (1.0, {"exact_number": 0.5})
    assert (found.seconds_per_step, found.seconds_left) == (2.0, None)
    assert found.started is not None and found.ended is not None and found.started <= found.ended


def test_a_finished_run_says_how_long_it_took_and_where_its_model_is(run: RunDir, trainer, cli, capsys) -> None:
    run_local(run, trainer(run, "step(1); sys.exit(3)"))
    run_local(run, trainer(run, DONE))
    for number, whole in ((2, True), (4, True), (5, False)):
        (run.checkpoints / f"step_{number:08d}").mkdir(parents=True)
        if whole:
            (run.checkpoints / f"step_{number:08d}" / "manifest.json").write_text("{}")
    run.export.mkdir()
    assert standing(run).export is None
    (run.export / "model.safetensors").touch()
    found = standing(run)
    first, second = history(run)
    assert first.ended is not None and second.ended is not None
    assert found.seconds_run == pytest.approx(first.ended - first.started + second.ended - second.started)
    assert (found.checkpoint, found.export) == (str(run.checkpoints / "step_00000004"), str(run.export))
    assert cli("status", run.path) == 0
    text = capsys.readouterr().out
    assert re.search(r"took +\S+ s in 2 starts\n", text)
    assert f"checkpoint  {found.checkpoint}\n" in text and f"export      {found.export}\n" in text


def test_a_run_that_is_silent_for_long_is_pointed_at(run: RunDir, trainer, capsys) -> None:
    run_local(run, trainer(run, "step(1)"))
    found = replace(standing(run), state="running", seconds_per_step=120.0)
    for ago, silent in ((1190, False), (1300, True)):
        present = replace(found, heard=time.time() - ago, changed=time.time() - ago)
        assert present.silent(time.time()) == silent
        show_standing(present, console())
        assert ("a step takes 2 m 00 s: perhaps it hangs" in capsys.readouterr().out) == silent
    just_begun = replace(found, heard=time.time() - 9999, changed=time.time())
    assert not just_begun.silent(time.time()), "another start was made since"


def test_an_error_and_a_crash_are_told_in_one_line(run: RunDir, trainer) -> None:
    run_local(run, trainer(run, 'log.error("DataError", "row 3\\nis bad", "mend it"); sys.exit(2)'))
    assert standing(run).last_error == "attempt 1: error: DataError: row 3 is bad"
    run_local(run, trainer(run, 'step(1)\nraise RuntimeError("boom")'))
    found = standing(run)
    assert (found.state, found.attempt) == ("crash", 2)
    assert "RuntimeError: boom" in found.last_error
    assert found.logs == str(run.path / "attempt_2" / "launcher.log")
    run_local(run, trainer(run, DONE))
    assert standing(run).state == "success"
    assert standing(run).last_error.startswith("attempt 2: crash")  # how it got there is still told


def test_a_running_run_and_one_whose_launcher_was_killed(run: RunDir, launch, waited) -> None:
    process = launch("step(1); log.phase('train', 2); time.sleep(60)")
    waited(lambda: standing(run).phase == "train")
    found = standing(run)
    assert (found.state, found.step, found.ended) == ("running", 1, None)
    assert found.seconds_left is not None and 4.0 <= found.seconds_left <= 6.0  # 3 steps of 2 s, one of them begun
    process.kill()
    process.wait()
    found = standing(run)
    assert (found.state, found.detail) == ("lost", "its launcher is gone")
    assert (found.phase, found.seconds_left) == ("", None)


def test_a_resumed_run_counts_its_steps_from_where_it_goes_on(run: RunDir, trainer) -> None:
    run_local(run, trainer(run, "for i in (1, 2, 3): step(i)\nsys.exit(3)"))
    run_local(run, trainer(run, "sinks.rewind(1); log.phase('start', 0); step(2, 0.9); sys.exit(3)"))
    found = standing(run)
    assert (found.step, found.rewards) == (2, [0.5, 0.9])


def test_a_process_number_that_was_given_again_is_not_the_launcher() -> None:
    import socket

    assert not Holder(socket.gethostname(), os.getpid(), born=1).alive()
    assert not Holder("elsewhere", os.getpid(), born=1).alive()


ONE, TWO = Submission(1, "slurm", ["7"], 0.0), Submission(2, "slurm", ["8"], 0.0)
CHAIN = Submission(1, "slurm", ["7", "8"], 0.0)


def attempt(state: str, number: int = 1, restart: int = 0, submission: int = 1, job_id: str = "7") -> Attempt:
    return Attempt(number, submission, "slurm", job_id, restart, ["n1"], 0.0, 0, state, f"because of {state}")  # type: ignore[arg-type]


RUNNING, WAITING = JobStates({"7": QueuedJob("RUNNING")}), JobStates({"7": QueuedJob("PENDING", "Resources")})


@pytest.mark.parametrize(
    ("submission", "attempts", "jobs", "stop", "expected"),
    [
        (None, [], JobStates(), None, "prepared"),
        (ONE, [], WAITING, None, "queued"),
        (ONE, [], JobStates({"7": QueuedJob("CONFIGURING")}), None, "starting"),
        (ONE, [attempt("running")], RUNNING, None, "running"),
        (ONE, [attempt("running")], WAITING, None, "queued"),  # requeued after a node failed; the record is still open
        (ONE, [attempt("preempted")], WAITING, None, "queued"),
        (ONE, [attempt("preempted")], RUNNING, None, "starting"),
        (ONE, [attempt("success")], RUNNING, None, "success"),  # the job is about to end
        (ONE, [attempt("crash")], JobStates(), None, "crash"),  # the failure budget is spent
        (ONE, [attempt("running")], JobStates(past={"7": ["NODE_FAIL"]}), None, "node_failure"),
        (ONE, [attempt("running")], JobStates(past={"7": ["COMPLETED"]}), None, "lost"),
        (ONE, [attempt("running")], JobStates(), None, "lost"),
        (ONE, [], JobStates(), None, "lost"),
        (ONE, [], JobStates(past={"7": ["CANCELLED"]}), None, "cancelled"),  # scancel, before it had begun
        (ONE, [], JobStates(), "cancelled", "cancelled"),
        (ONE, [attempt("preempted")], JobStates(past={"7": ["PREEMPTED", "CANCELLED"]}), None, "cancelled"),
        (ONE, [attempt("preempted")], JobStates(past={"7": ["PREEMPTED"]}), None, "preempted"),
        (ONE, [attempt("running", restart=1)], JobStates(past={"7": ["REQUEUED", "TIMEOUT"]}), None, "timeout"),
        (ONE, [attempt("running")], JobStates(problem="squeue is not installed here"), None, "running"),
        (ONE, [], JobStates(problem="squeue is not installed here"), None, "queued"),
        # resumed after an error: the older submission does not count
        (TWO, [attempt("error")], JobStates({"8": QueuedJob("PENDING")}), None, "queued"),
        # a chain: one job ended, the next waits behind it
        (CHAIN, [attempt("timeout")], JobStates({"8": QueuedJob("PENDING")}), None, "queued"),
        # a chain whose first job was cancelled before it had begun
        (CHAIN, [], JobStates(past={"7": ["CANCELLED"], "8": ["COMPLETED"]}), None, "cancelled"),
    ],
)
def test_the_state_under_slurm(submission, attempts, jobs, stop, expected) -> None:
    state, detail, known = judge_state(submission, attempts, jobs, stop)
    assert state == expected
    assert ("not installed" in detail) == bool(jobs.problem) == (not known)


@pytest.mark.parametrize(
    ("jobs", "expected"), [("7", ["7"]), ("7_3", ["7_3"]), ("7_[0-2,5%2]", ["7_0", "7_1", "7_2", "7_5"])]
)
def test_tasks_that_never_began_have_one_line_in_the_accounting(jobs: str, expected: list[str]) -> None:
    assert tasks(jobs) == expected


def test_status_prints_the_facts_of_its_json(run: RunDir, capsys, trainer, cli) -> None:
    run_local(run, trainer(run, DONE))
    capsys.readouterr()
    assert cli("status", run.path) == 0
    text = capsys.readouterr().out
    assert "small  success  finished" in text and "4 of 4, 2.0 s a step" in text and "1.000  ▁▃▆█" in text
    assert cli("status", run.path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == standing(run).to_dict()
    assert facts["heard"] == run.events.stat().st_mtime and "last event" not in text  # it is over


def test_a_run_that_says_nothing_any_more_can_be_told_from_one_that_works(run: RunDir, launch, capsys, cli) -> None:
    launch("step(1); time.sleep(60)")
    for path in (run.events, run.metrics):
        os.utime(path, (time.time() - 7200,) * 2)
    assert cli("status", run.path) == 0
    assert "last event  2 h 00 m ago" in capsys.readouterr().out


def test_status_without_a_run_shows_what_runs_or_what_changed_last(new_run, capsys, cli) -> None:
    assert cli("status") == 2
    assert "no run in ./runs" in capsys.readouterr().err
    old, new = new_run("old"), new_run("new")
    os.utime(old.run_file, (1, 1))
    capsys.readouterr()
    assert cli("status", "--json") == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)] == [new.path.name]


def test_list_names_what_is_no_run_and_what_is_damaged(new_run, tmp_path: Path, capsys, cli) -> None:
    good, bad, worse = new_run("good"), new_run("bad"), new_run("worse")
    bad.run_file.write_text("name: [")
    (worse.path / "attempt_1").mkdir()
    (worse.path / "attempt_1" / "attempt.json").write_text("{}")
    worse.job_file.write_text('{"submissions": [{"number": 1}]}')
    (tmp_path / "runs" / "notes [bold].txt").touch()
    assert cli("list") == 0
    out = capsys.readouterr().out
    assert "good  prepared   0/4" in out and "notes [bold].txt: no run" in out
    assert "bad: " in out and "is not valid YAML" in out and "job.json is damaged: submissions: 0:" in out
    assert cli("list", tmp_path / "runs", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["run_dir"] for run in found["runs"]] == [str(good.path)]
    assert len(found["passed_over"]) == 3


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["status", "nowhere"], "is not a run directory"),
        (["list", "nowhere"], "there is no folder nowhere"),
        (["list", "runs/small"], "grpo-hpc status runs/small"),
        (["status", "--jsn"], "--json"),
    ],
)
def test_wrong_arguments(args, expected, run: RunDir, capsys, cli) -> None:
    assert cli(*args) == 2
    assert expected in capsys.readouterr().err
