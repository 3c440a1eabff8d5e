"""An attempt notices when its run directory is not its own any more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_hpc.errors import EnvironmentProblem, RunTaken
from grpo_hpc.runs.attempt_hold import VARIABLE, Hold
from grpo_hpc.runs.attempts import RECORD, Attempt, begin
from grpo_hpc.runs.run_dir import RunDir


@pytest.fixture
def attempt(run: RunDir) -> Attempt:
    return begin(run, "local", ["here"], 1)


def rewrite(run: RunDir, **values: object) -> None:
    path = run.path / "attempt_1" / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def move_the_directory(run: RunDir) -> None:
    run.path.rename(run.old_path())


def begin_another(run: RunDir) -> None:
    begin(run, "local", ["there"], 2)


def be_another_run(run: RunDir) -> None:
    rewrite(run, started=1.0)


def record_its_end(run: RunDir) -> None:
    rewrite(run, state="lost")


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (move_the_directory, "is gone"),
        (begin_another, "attempt_2 has begun"),
        (be_another_run, "is that of another run"),
        (record_its_end, r"its end was recorded by others \(lost\)"),
    ],
)
def test_a_place_that_is_taken(run: RunDir, attempt: Attempt, happens, said) -> None:
    hold = Hold(run, attempt)
    hold.require()
    happens(run)
    with pytest.raises(RunTaken, match=f"attempt 1 has lost its run directory: .*{said}"):
        hold.require()


def test_a_file_system_that_stumbles_takes_nothing(run: RunDir, attempt: Attempt) -> None:
    hold = Hold(run, attempt)
    record = run.path / "attempt_1" / RECORD
    record.write_text("{")
    assert hold.lost() == ""
    record.unlink()
    record.mkdir()  # cannot be read, and is not gone
    assert hold.lost() == ""


def test_a_process_knows_its_attempt_by_its_environment(run: RunDir, attempt: Attempt, monkeypatch) -> None:
    begin_another(run)
    assert Hold.here(run) is None
    monkeypatch.setenv(VARIABLE, "1")
    hold = Hold.here(run)
    assert hold is not None and hold.lost() == "attempt_2 has begun"


def test_of_two_who_begin_at_once_one_does(run: RunDir, attempt: Attempt, monkeypatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: [])  # what another process may have seen a moment ago
    with pytest.raises(EnvironmentProblem, match="attempt_1 of small has just been begun by somebody else"):
        run.new_attempt()
