"""How an attempt ended, told from what is left of it; the lines are those that Slurm, kernel and PyTorch write."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.observe.events import EventLog
from grpo_hpc.runs.crash import Crash
from grpo_hpc.runs.ends import End, judge, what_happened, why_cancelled, why_ended
from grpo_hpc.runs.run_dir import RunDir

STEP = "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-23T04:02:16"
TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 1, in <module>\n"


def judged(folder: Path, code: int, launcher: str = "", rank: str = "", asked=None, event=None) -> End:
    events = EventLog(folder / "events.jsonl")
    events.stopped(1)  # of an earlier attempt
    offset = (folder / "events.jsonl").stat().st_size
    if event:
        event(events)
    RunDir.launcher_log(folder).write_text(launcher)
    RunDir.rank_log(folder, 0).write_text(rank)
    logs = [RunDir.rank_log(folder, 0)]
    return judge(RunDir(folder), code, asked, offset, RunDir.launcher_log(folder), logs)


@pytest.mark.parametrize(
    ("launcher", "rank", "state", "reason"),
    [
        (f"{STEP} DUE TO TIME LIMIT ***\n", "", "timeout", "DUE TO TIME LIMIT"),
        (f"{STEP} DUE TO PREEMPTION ***\n", "", "preempted", "DUE TO PREEMPTION"),
        ("srun: error: Node failure on n2\n", "", "node_failure", "srun: error: Node failure on n2"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0.\n", "", "out_of_memory", "oom-kill event"),
        (
            "slurmstepd: error: Step 7.0 exceeded memory limit (2000 > 1000), being killed\n",
            "",
            "out_of_memory",
            "exceeded",
        ),
        (
            "",
            f"{TRACEBACK}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n",
            "out_of_memory",
            "CUDA",
        ),
        ("", f"{TRACEBACK}ValueError: no\n", "crash", "exit code 1; rank_0.log: ValueError: no"),
        ("slurmstepd: error: execve(): bash: No such file\n", "", "crash", "launcher.log: slurmstepd: error: execve()"),
        ("", "", "crash", "exit code 1"),
    ],
)
def test_what_ended_it(tmp_path, launcher, rank, state, reason):
    end = judged(tmp_path, 1, launcher, rank)
    assert end.state == state and reason in end.reason and "\n" not in end.reason


def test_what_the_trainer_says_counts_first(tmp_path):
    def wrong(events):
        events.error("ConfigError", "lr is wrong", "")

    assert judged(tmp_path, 1, f"{STEP} DUE TO TIME LIMIT ***\n", event=wrong) == End(
        "error", "ConfigError: lr is wrong"
    )


def test_a_lost_server_is_nobodys_mistake(tmp_path):
    """Whoever notices it first: the trainer, which says so, or the supervisor."""
    end = judged(tmp_path, 1, event=lambda events: events.error("ServersLost", "http://n2:1 has not answered", ""))
    assert end == End("crash", "ServersLost: http://n2:1 has not answered")


def test_an_end_that_was_asked_for(tmp_path):
    saved = judged(tmp_path, 0, asked="timeout", event=lambda events: events.stopped(8))
    assert saved == End("timeout", "saved and stopped after step 8")
    assert judged(tmp_path, 1, asked="preempted") == End("preempted", "ended before anything was saved")
    assert judged(tmp_path, 0, event=lambda events: events.stopped(9)).state == "stopped"


def test_a_reason_never_denies_a_save(tmp_path):
    killed_after_it = judged(tmp_path, 137, asked="timeout", event=lambda events: events.stopped(8))
    assert killed_after_it == End("timeout", "saved and stopped after step 8")
    checkpoint = tmp_path / "checkpoints" / "step_00000006"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text('{"files": {}}')
    late = judged(tmp_path, None, asked="timeout")
    assert late.reason.startswith("ended before it had saved what came after step 6; a step or a rollout took longer")


def test_success_needs_the_word_of_the_trainer(tmp_path):
    assert judged(tmp_path, 0, event=lambda events: events.finished({"lines": []})) == End("success", "finished")
    assert judged(tmp_path, 0).state == "crash"
    assert judged(tmp_path, 1, event=lambda events: events.finished({"lines": []})).state == "crash"


@pytest.mark.parametrize(
    ("why", "state"),
    [
        ("", "cancelled"),
        (" DUE TO TIME LIMIT", "timeout"),
        (" DUE TO PREEMPTION", "preempted"),
        (" DUE TO JOB REQUEUE", "preempted"),
        (" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", "node_failure"),
    ],
)
def test_why_slurm_ended_a_step(tmp_path, why, state):
    (tmp_path / "launcher.log").write_text(f"{STEP}{why} ***\n")
    assert why_cancelled(tmp_path / "launcher.log") == state
    assert why_cancelled(tmp_path / "none.log") is None


@pytest.mark.parametrize(
    ("asked", "word", "line", "why"),
    [
        (None, None, None, None),
        (None, None, "cancelled", None),  # a task of the step failed, and Slurm ended the others
        (None, "CANCELLED", None, "cancelled"),  # the step was refused before the signal came
        (None, "REQUEUED", "cancelled", "preempted"),
        ("preempted", None, None, "preempted"),  # the job may use its time of grace
        ("preempted", None, "timeout", "timeout"),
        ("preempted", "CANCELLED", None, "cancelled"),
        ("preempted", "REQUEUED", "node_failure", "node_failure"),
        ("preempted", "PREEMPTED", "cancelled", "preempted"),
        ("timeout", "CANCELLED", None, "timeout"),
    ],
)
def test_why_an_attempt_was_told_to_end(asked, word, line, why):
    assert why_ended(asked, word, line) == why


def test_what_a_program_said_is_the_reason_and_not_which_task_ended_last():
    """Else two starts that fail alike would differ by the node that srun names."""
    why, which = (
        "job.sh: line 1: /nowhere/python: No such file",
        "srun: error: node2: task 1: Exited with exit code 127",
    )
    assert what_happened(127, Crash(Path("launcher.log"), [why, which])).endswith(why)
    assert what_happened(1, Crash(Path("launcher.log"), [which])).endswith(which)


@pytest.mark.parametrize(
    "taken_down",
    [
        "slurmstepd-node1: error: *** STEP 20.0 ON node1 CANCELLED AT 2026-11-29T22:24:07 ***",
        "slurmstepd: error: *** JOB 20 ON node1 CANCELLED AT 2026-11-29T22:24:07 DUE TO JOB REQUEUE ***",
    ],
)
def test_that_a_step_was_taken_down_is_no_reason(taken_down):
    """Slurm ends a step when one task has failed, and its line may come last; its other lines are causes."""
    why = "slurmstepd-node1: error: execve(): /nowhere/python: No such file or directory"
    assert what_happened(127, Crash(Path("launcher.log"), [why, taken_down])).endswith(why)


def test_a_reason_is_about_the_failure_and_not_the_last_note_of_progress():
    died = "ERROR 11-29 12:00:01 [multiproc_executor.py:259] Worker proc VllmWorker-1 died unexpectedly, shutting down."
    lines = ["INFO 11-29 12:00:00 [core.py:1] ready", died, "INFO 11-29 12:00:02 [core.py:2] shutting down (no error)"]
    assert what_happened(1, Crash(Path("server_0.log"), lines)) == f"exit code 1; server_0.log: {died}"
    assert what_happened(1, Crash(Path("x.log"), ["bye", *lines[2:]])).endswith("x.log: bye")
    assert what_happened(1, Crash(Path("x.log"), lines[2:])).endswith("(no error)")
    assert what_happened(-9, Crash(Path("x.log"), [])) == "killed by signal 9 (SIGKILL); x.log: no output"
