"""What the records of earlier starts say about another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.observe.events import EventLog
from grpo_hpc.runs.attempts import Attempt, begin, fails_alike, failures_in_a_row, saved_step
from grpo_hpc.runs.run_dir import RunDir


def crash(reason: str = "exit code 1; no bash", seconds: float = 1, last_step: int = 0, state="crash") -> Attempt:
    return Attempt(1, 1, "slurm", "7", 0, ["n"], 0, 0, state, reason, 1, seconds, last_step)


@pytest.mark.parametrize(
    ("attempts", "alike"),
    [
        ([], False),
        ([crash()], False),
        ([crash(), crash()], True),
        ([crash("other"), crash(), crash()], True),
        ([crash(), crash("other")], False),
        ([crash(), crash(seconds=60)], False),
        ([crash(), crash(state="preempted")], False),
    ],
)
def test_an_error_that_repeats_at_once_is_not_worth_more_starts(attempts: list[Attempt], alike: bool) -> None:
    assert fails_alike(attempts) == alike


def test_failures_count_until_something_is_saved() -> None:
    assert failures_in_a_row([crash(), crash(last_step=3), crash(), crash(state="preempted"), crash()]) == 2


def test_no_record_of_a_failure_has_a_secret(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hush-0123456\n")
    run = RunDir(tmp_path)
    (tmp_path / "attempt_1").mkdir()
    events = EventLog(run.events)
    events.error("EnvironmentProblem", "wandb cannot start: hush-0123456", "Not with hush-0123456.")
    events.message("retry of https://host/?k=hush-0123456")
    crash().end(run, "crash", "ValueError: b'hush-0123456\\n'", 1)
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert written.count("(secret)") == 4 and "hush" not in written


def test_a_damaged_checkpoint_is_none(run: RunDir) -> None:
    """Else a start that went back to an older one would seem to have saved nothing, and cost of the budget."""
    for step, text in {2: '{"files": {"a": 1}}', 4: '{"files": {"a": {"size": 9}}}', 6: "{", 8: None}.items():
        folder = run.checkpoints / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "a").write_text("x")
        if text:
            (folder / "manifest.json").write_text(text)
    assert begin(run, "local", ["n"], 1).first_step == saved_step(run) == 2
