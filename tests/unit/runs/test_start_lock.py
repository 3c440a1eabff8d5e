"""One command of several starts a run, whatever else they do; tests/slurm has those of a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.jobs.local import run_local
from grpo_hpc.runs.attempts import begin, history
from grpo_hpc.runs.holder import Holder, launcher_of
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import standing
from grpo_hpc.runs.start_lock import FILE, STALE_S, locked, move_away, starting
from grpo_hpc.runs.submissions import note_submission

SLOW = "step(1)\nwhile not run.stop.exists(): time.sleep(0.05)\nlog.stopped(1)"
COUNT = """
import sys, time
from pathlib import Path
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.start_lock import locked
run = RunDir(sys.argv[1])
for _ in range(20):
    with locked([run]):
        number = int((run.path / "count").read_text())
        time.sleep(0.001)
        (run.path / "count").write_text(str(number + 1))
"""


def lock_of(run: RunDir, holder: Holder, age: float = 0.0) -> Path:
    path = run.path / FILE
    path.write_text(json.dumps({**asdict(holder), "token": "x"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def dead() -> Holder:
    process = subprocess.Popen(["true"])
    process.wait()
    return replace(Holder.present(), pid=process.pid)


def test_of_four_who_start_a_run_at_once_one_does(run: RunDir, launcher, waited) -> None:
    command = launcher(SLOW)
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    waited(lambda: sum(process.poll() is None for process in started) == 1)
    refused = [process for process in started if process.poll() is not None]
    assert all("EnvironmentProblem: the run small is running (process" in process.stderr.read() for process in refused)
    assert len(history(run)) == 1
    run.ask_to_stop("stopped")
    (one,) = (process for process in started if process not in refused)
    assert one.wait(20) == 0
    assert not (run.path / FILE).exists()


def test_a_running_run_is_neither_resumed_nor_moved_away_nor_prepared_anew(run: RunDir, launch, cli, capsys) -> None:
    launch(SLOW)
    before = {path: path.read_bytes() for path in (run.run_file, run.job_script, run.cluster_file)}
    for command in (["resume", run.path], ["resume", run.path, "--profile", "local"]):
        assert cli(*command) == 2
        said = capsys.readouterr().err
        assert "the run small is running (process" in said and "Cancel it first: grpo-hpc cancel runs/small" in said
    with pytest.raises(EnvironmentProblem, match="is running"):
        move_away(run)
    assert cli("submit", "run.yaml", "--fresh", "--dry-run") == 2
    assert "the run small is running" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in run.path.parent.iterdir()] == ["small"]
    assert cli("cancel", run.path) == 0  # which the lock lets through
    move_away(run)
    assert [path.name for path in run.path.parent.iterdir()] == ["small.old-1"]
    assert not (run.path.parent / "small.old-1" / FILE).exists()


def test_a_lock_that_nobody_holds_is_taken_over(run: RunDir, capsys) -> None:
    elsewhere, rebooted = Holder("elsewhere", 1, 1, "b"), replace(Holder.present(), boot="another")
    for holder, age in ((dead(), 0.0), (rebooted, 0.0), (elsewhere, STALE_S + 60)):
        path = lock_of(run, holder, age)
        with locked([run], wait_s=1):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert f"the lock of {holder} was taken over" in capsys.readouterr().err
        assert not path.exists()


def test_one_that_somebody_may_hold_is_waited_for(run: RunDir, cli, capsys) -> None:
    in_a_container = replace(dead(), space="pid:[1]")  # of this machine, and not to be seen
    for holder in (Holder.present(), Holder("elsewhere", 1, 1, "b"), in_a_container):
        path = lock_of(run, holder)
        with (
            pytest.raises(EnvironmentProblem, match=f"started, cancelled or moved by {holder}") as caught,
            locked([run], 0.3),
        ):
            pass
        assert str(path) in caught.value.hint
        assert path.exists()


def test_many_who_find_a_dead_lock_are_inside_one_at_a_time(run: RunDir) -> None:
    (run.path / "count").write_text("0")
    lock_of(run, dead())
    workers = [subprocess.Popen([sys.executable, "-c", COUNT, str(run.path)]) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert (run.path / "count").read_text() == "80"
    assert [path.name for path in run.path.glob(f"{FILE}*")] == []


def test_what_cannot_be_known_is_not_started(run: RunDir, trainer, cli, capsys) -> None:
    attempt = begin(run, "local", ["elsewhere"], note_submission(run, "local").number)
    note = attempt.folder(run) / "launcher.json"
    note.write_text('{"host": "elsewhere", "pid": 1, "born": 1}')
    assert cli("resume", run.path) == 2
    assert "not known (as recorded; whether it still runs can be seen on elsewhere only)" in capsys.readouterr().err
    os.utime(note, (time.time() - 1200,) * 2)  # no sign of life of that launcher
    assert (standing(run).state, standing(run).known) == ("lost", True)
    with starting([run]):
        pass


def test_a_launcher_whose_place_is_taken_writes_no_end(run: RunDir, trainer, capfd) -> None:
    body = "(run.path / 'attempt_2').mkdir(); log.stopped(1)"
    assert run_local(run, trainer(run, body)) == 2
    assert "attempt 1 has lost its run directory: attempt_2 has begun" in capfd.readouterr().err
    assert [attempt.state for attempt in history(run)] == ["running"]


def test_a_damaged_record_of_the_newest_start_says_nothing_of_its_end(run: RunDir, trainer, cli, capsys) -> None:
    run_local(run, trainer(run, 'log.finished({"lines": []})'))
    record = run.path / "attempt_1" / "attempt.json"
    record.write_text("{")
    assert cli("resume", run.path) == 2
    assert f"not known ({record} is damaged; delete it if the run is over)" in capsys.readouterr().err
    record.unlink()
    with starting([run]):
        pass


@pytest.mark.parametrize("text", ["", "{", '{"host": 1}', '{"host": "a", "pid": "1\\u0000", "born": 1}', None])
def test_a_damaged_lock_is_an_old_one_some_day(run: RunDir, text: str | None) -> None:
    path = run.path / FILE
    path.mkdir() if text is None else path.write_text(text)
    with pytest.raises(EnvironmentProblem, match="by somebody"), locked([run], 0.3):
        pass
    os.utime(path, (time.time() - STALE_S - 60,) * 2)
    with locked([run], 1):
        assert path.is_file()
    (run.path / "attempt_1").mkdir()
    (run.path / "attempt_1" / "launcher.json").write_text(text or "[]")
    assert launcher_of(run.path / "attempt_1") is None
