"""Reading logs, while they grow and over new starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import pytest

from grpo_hpc.errors import ConfigError
from grpo_hpc.runs import follow
from grpo_hpc.runs.attempts import Attempt, begin
from grpo_hpc.runs.follow import Wanted, follow_log, read_log
from grpo_hpc.runs.holder import LauncherNote
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.submissions import note_submission

ROOT = Path(__file__).parents[3]


@pytest.fixture
def started(run: RunDir) -> Attempt:
    return start(run)


def start(run: RunDir) -> Attempt:
    """A start whose launcher is this process."""
    attempt = begin(run, "local", ["here"], note_submission(run, "local").number)
    LauncherNote(attempt.folder(run)).write()
    return attempt


def log(run: RunDir, attempt: Attempt, name: str, text: str) -> None:
    with (attempt.folder(run) / name).open("a") as file:
        file.write(text)


def texts(lines) -> list[str]:
    return [line.line for line in lines]


def test_the_log_that_tells_most(run: RunDir, started: Attempt) -> None:
    with pytest.raises(ConfigError, match="has no log yet"):
        read_log(run, Wanted())
    log(run, started, "check.log", "checking\n")
    assert texts(read_log(run, Wanted())) == ["checking"]
    log(run, started, "launcher.log", "torchrun\n")
    assert texts(read_log(run, Wanted())) == ["torchrun"]
    log(run, started, "rank_0.log", "zero\nzero again\nno end")
    log(run, started, "rank_1.log", "one\nTraceback (most recent call last):\n  x\nValueError: boom\n")
    assert texts(read_log(run, Wanted())) == ["zero", "zero again", "no end"]
    assert texts(read_log(run, Wanted(), last=2)) == ["zero again", "no end"]
    assert texts(read_log(run, Wanted(rank=1), last=1)) == ["ValueError: boom"]
    started.end(run, "crash", "ValueError: boom", 1)
    assert texts(read_log(run, Wanted()))[0] == "one"  # the rank that failed
    second = start(run)
    log(run, second, "rank_0.log", "second\n")
    assert texts(read_log(run, Wanted())) == ["second"]
    assert texts(read_log(run, Wanted(attempt=1)))[0] == "one"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(attempt=7), "There are attempts 1 to 1"),
        (Wanted(rank=2), "2 ranks: 0 to 1"),
        (Wanted(rank=1), "has no log yet"),
        (Wanted(server=0), "samples inside the trainer's own processes"),
    ],
)
def test_what_is_not_there_is_said(run: RunDir, started: Attempt, wanted: Wanted, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_log(run, wanted)
    assert expected in str(caught.value)


def test_the_log_of_a_server(run: RunDir, started: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDir, "planned_servers", lambda _: [{"node": 1}, {"node": 1}])
    log(run, started, "server_1.log", "one\n")
    assert texts(read_log(run, Wanted(server=1))) == ["one"]
    with pytest.raises(ConfigError, match="no log yet"):
        read_log(run, Wanted(server=0))
    with pytest.raises(ConfigError, match=r"(?s)no server 2.*It has 2: 0 to 1"):
        read_log(run, Wanted(server=2))


def test_following_goes_over_to_a_new_start_and_ends_with_the_run(
    run: RunDir, started: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_LOOK_S", 0.0)
    log(run, started, "launcher.log", "torchrun\n")
    lines = follow_log(run, Wanted())

    def now() -> list[str]:
        return texts(takewhile(lambda line: line is not None, lines))

    assert now() == ["torchrun"]
    log(run, started, "rank_0.log", "a\nb")
    assert now() == ["a"]  # b is not finished
    log(run, started, "rank_0.log", "\nc\n")
    assert now() == ["b", "c"]
    log(run, started, "rank_0.log", "last words")
    second = start(run)  # before the old one was read to its end
    log(run, second, "rank_0.log", "d\n")
    assert now() == ["last words", "d"]
    log(run, second, "rank_0.log", "e\n")
    second.end(run, "success", "finished", 0)
    assert texts(line for line in lines if line) == ["e"]


def test_following_the_last_lines_of_a_run_that_is_over(run: RunDir, started: Attempt) -> None:
    log(run, started, "rank_0.log", "a\nb\nc\nd")
    started.end(run, "stopped", "", 0)
    assert texts(line for line in follow_log(run, Wanted(), last=2) if line) == ["c", "d"]  # d has no end


def test_json_is_one_object_a_line_and_bytes_that_are_no_text_do_no_harm(run: RunDir, started, cli, capfd) -> None:
    (started.folder(run) / "rank_0.log").write_bytes(b'caf\xe9 "[x]" \x1b[31m\n\n')
    assert cli("logs", run.path, "--json") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["line"] for line in lines] == ['caf� "[x]" \x1b[31m', ""]
    assert lines[0]["attempt"] == 1 and lines[0]["file"].endswith("attempt_1/rank_0.log")
    assert cli("logs", run.path) == 0
    assert capfd.readouterr().err == f"==> {lines[0]['file']} <==\n"


def test_a_run_that_was_never_started_has_nothing_to_follow(run: RunDir, cli, capsys) -> None:
    assert cli("logs", run.path, "-f") == 2
    assert "grpo-hpc resume" in capsys.readouterr().err


@pytest.mark.parametrize("follows", [True, False])
def test_a_reader_that_has_enough_ends_it_quietly(run: RunDir, started: Attempt, follows: bool) -> None:
    log(run, started, "rank_0.log", "line\n" * (1 if follows else 100_000))
    command = [sys.executable, "-m", "grpo_hpc.cli", "logs", str(run.path), *(["-f"] if follows else [])]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
    assert process.stderr.read().decode().count("\n") == 1  # the name of the file


def test_a_reader_that_never_reads_does_no_harm(run: RunDir) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "grpo_hpc.cli", "status", str(run.path)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_ends_it_quietly(run: RunDir, started: Attempt) -> None:
    log(run, started, "rank_0.log", "line\n")
    # what is started in the background of a script ignores this signal
    command = ["env", "--default-signal=INT", sys.executable, "-m", "grpo_hpc.cli", "logs", str(run.path), "-f"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert b"Traceback" not in process.stderr.read()


def test_a_log_larger_than_memory_is_read_in_blocks(run, monkeypatch):
    folder = run.new_attempt()
    monkeypatch.setattr(follow, "_BLOCK", 8)
    RunDir.rank_log(folder, 0).write_text("one\ntwo\n" + "x" * 20 + "\nthree")
    lines = texts(follow._Reader(None, RunDir.rank_log(folder, 0), None).rest())
    assert lines == ["one", "two", "x" * 8, "x" * 8, "x" * 4, "three"]
    cut = follow._Reader(None, RunDir.rank_log(folder, 0), None)
    list(cut.rest())
    RunDir.rank_log(folder, 0).write_text("short\n")  # cut, because it was too long
    assert list(cut.new()) == []
    with RunDir.rank_log(folder, 0).open("a") as file:
        file.write("next\n")
    assert texts(cut.new()) == ["next"]
