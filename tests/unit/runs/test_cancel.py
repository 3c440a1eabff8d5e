"""Cancelling runs of this machine; tests/slurm has those of a cluster."""

from __future__ import annotations

import json

from grpo_hpc.runs.attempts import begin, history
from grpo_hpc.runs.cancelling import cancel
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import standing
from grpo_hpc.runs.submissions import note_submission

OBEYS = "step(1)\nwhile not run.stop.exists(): time.sleep(0.05)\nlog.stopped(1)"


def test_a_running_run_saves_and_is_recorded_as_cancelled(run: RunDir, launch, cli, capsys) -> None:
    process = launch(OBEYS)
    assert cli("cancel", run.path) == 0
    assert capsys.readouterr().out == "small: cancelled after step 1 (saved and stopped after step 1)\n"
    assert process.wait(10) == 0
    assert [attempt.state for attempt in history(run)] == ["cancelled"]
    before = (run.path / "attempt_1" / "attempt.json").read_text()
    assert cli("cancel", run.path, "--json") == 0  # once more does nothing
    assert json.loads(capsys.readouterr().out)["state"] == "cancelled"
    assert (run.path / "attempt_1" / "attempt.json").read_text() == before


def test_one_that_does_not_listen_is_killed(run: RunDir, launch) -> None:
    process = launch("step(1); time.sleep(100)")
    assert cancel([run], save_s=0.3) == [run]
    assert process.wait(10) == 130
    assert [attempt.state for attempt in history(run)] == ["cancelled"]


def test_what_is_over_or_was_never_started_is_left_alone(run: RunDir, cli, capsys) -> None:
    assert cli("cancel", run.path) == 0
    assert capsys.readouterr().out == "small is over already: prepared\n"
    assert not run.stop.exists()


def test_a_run_of_another_machine_is_asked_through_its_folder(run: RunDir, cli, capsys, monkeypatch) -> None:
    attempt = begin(run, "local", ["elsewhere"], note_submission(run, "local").number)
    (attempt.folder(run) / "launcher.json").write_text('{"host": "elsewhere", "pid": 1, "born": 1}')
    assert cli("cancel", run.path) == 1
    assert "asked to save and stop, but is running still: as recorded" in capsys.readouterr().out
    assert run.why_stop() == "cancelled"
    assert standing(run).state == "running"
