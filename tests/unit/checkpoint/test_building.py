"""Two processes never build one folder."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest

from grpo_hpc.checkpoint import building as building_module
from grpo_hpc.checkpoint.building import JOURNAL, building
from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.naming import Parallel
from grpo_hpc.checkpoint.run import Work, build
from grpo_hpc.checkpoint.to_megatron import plan_to_megatron
from grpo_hpc.checkpoint.verify import verify_whole
from grpo_hpc.errors import CheckpointError

HOLD = """
import sys, time, fcntl
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print(1, flush=True)
time.sleep(60)
"""


@pytest.fixture
def plan(model):
    return plan_to_megatron(open_folder(model), Parallel())


@pytest.fixture
def other(tmp_path):
    """Another process that holds the journal of ``target``."""
    (tmp_path / "target.partial").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "target.partial" / JOURNAL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        yield process
        process.kill()


def test_a_second_conversion_is_refused_and_touches_nothing(plan, other, tmp_path):
    (tmp_path / "target.partial" / "half.distcp").write_text("of the other")
    with pytest.raises(CheckpointError, match=r"another process is building .*target at this moment"):
        build(plan, tmp_path / "target", Work())
    assert (tmp_path / "target.partial" / "half.distcp").read_text() == "of the other"
    assert not (tmp_path / "target").exists()


def test_a_killed_one_leaves_no_lock(plan, other, tmp_path):
    other.send_signal(signal.SIGKILL)
    other.wait()
    build(plan, tmp_path / "target", Work())
    assert not verify_whole(open_folder(tmp_path / "target"), Work()).faults
    assert not (tmp_path / "target" / JOURNAL).exists()


def test_many_at_once_make_one_whole_folder(model, tmp_path):
    command = [
        sys.executable,
        "-m",
        "grpo_hpc.cli",
        "checkpoint",
        "convert",
        model,
        tmp_path / "target",
        "--workers",
        "1",
    ]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(4)]
    said = [process.communicate()[1].decode() for process in running]
    codes = [process.returncode for process in running]
    assert sorted(codes) == [0, 2, 2, 2]
    assert all(
        "exists already" in text or "another process" in text for text, code in zip(said, codes, strict=True) if code
    )
    assert not verify_whole(open_folder(tmp_path / "target"), Work()).faults
    assert not (tmp_path / "target.partial").exists()


def test_what_was_finished_in_between_is_not_built_again(tmp_path, monkeypatch):
    def finish(journal, operation, lock=fcntl.flock):
        (tmp_path / "target").mkdir()
        lock(journal, operation)

    monkeypatch.setattr(building_module.fcntl, "flock", finish)
    with pytest.raises(CheckpointError, match="exists already"), building(tmp_path / "target"):
        pytest.fail("it was begun")
    assert not (tmp_path / "target.partial").exists()


def test_a_journal_that_was_renamed_away_is_no_lock(tmp_path, monkeypatch):
    def finish(journal, operation, lock=fcntl.flock):
        (tmp_path / "target.partial").rename(tmp_path / "elsewhere")
        lock(journal, operation)

    monkeypatch.setattr(building_module.fcntl, "flock", finish)
    with pytest.raises(CheckpointError, match="another process"), building(tmp_path / "target"):
        pytest.fail("it was begun")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def none(journal, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(building_module.fcntl, "flock", none)
    with building(tmp_path / "target"):
        assert "has no locks" in capsys.readouterr().err
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("line", ["{", "7", "[99, []]", '[0, ["x"]]', "[0, 7]", '["0", []]', "[-1, []]", "\udcff"])
def test_a_damaged_line_of_the_journal_is_passed_over(line, plan, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("grpo_hpc.checkpoint.run._finish", Mock(side_effect=KeyboardInterrupt))
        build(plan, tmp_path / "target", Work())
    journal = tmp_path / "target.partial" / JOURNAL
    first, *finished = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([first, line.encode(errors="surrogateescape"), *finished[1:]]) + b"\n")
    begun = []
    build(plan, tmp_path / "target", Work(progress=lambda done, total: begun.append(total - done)))
    assert begun[0] == plan.jobs[0].nbytes, "the job of the damaged line alone is made again"
    assert not verify_whole(open_folder(tmp_path / "target"), Work()).faults
