"""`grpo-hpc clean`: what goes, what stays, and that a run that lives keeps everything."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_hpc.config import dump_run, load_run
from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.jobs.checks.node_reports import this_node
from grpo_hpc.jobs.local import run_local
from grpo_hpc.runs.clearing import leftovers
from grpo_hpc.runs.clearing.leftovers import Wanted, find_leftovers, remove
from grpo_hpc.runs.clearing.segments import segment_files, unused_segments
from grpo_hpc.runs.run_dir import RunDir

DONE = 'for i in range(1, 5): step(i, i / 4)\nlog.finished({"lines": []})'
NOTHING_MORE = Wanted(None, None, "no-such-node")


def save(run: RunDir, name: str, whole: bool = True) -> Path:
    folder = run.checkpoints / name
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(bytes(1000))
    files = {"data": 1000 if whole else 2000}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


def found_in(folder: Path, wanted: Wanted = NOTHING_MORE) -> set[str]:
    return {str(left.path.relative_to(folder.absolute())) for left in find_leftovers(folder, wanted).leftovers}


def test_what_nobody_needs_is_found_and_deleted_when_asked(run, new_run, trainer, cli, capsys):
    run_local(run, trainer(run, DONE))
    for number in (1, 2, 4):
        save(run, f"step_0000000{number}")
    save(run, "step_00000003.tmp"), save(run, "step_00000003.damaged"), save(run, "step_00000005.damaged")
    save(run, "step_00000006", whole=False)
    run.prompts.mkdir(parents=True)
    old = new_run("other")
    old.path.rename(run.path.parent / "other.old-1")
    draft = run.path.parent / ".other.0123abcd"
    draft.mkdir()
    os.utime(draft, (time.time() - 7200,) * 2)
    (run.path.parent / ".other.89abcdef").mkdir()  # of a command that works now, perhaps
    (run.path.parent / "notes.old-1").mkdir()  # no run

    expected = {"other.old-1", ".other.0123abcd", "small/.cache/prompts"}
    expected |= {f"small/checkpoints/step_00000003.{end}" for end in ("tmp", "damaged")}
    assert found_in(run.path.parent) == expected
    before = sorted(run.path.parent.rglob("*"))
    assert cli("clean") == 0
    shown = capsys.readouterr().out
    assert "Nothing was deleted" in shown and "runs/other.old-1  (moved away by --fresh)" in shown
    assert "not touched: runs/notes.old-1: no run" in shown
    assert sorted(run.path.parent.rglob("*")) == before

    assert cli("clean", "runs/small", "--checkpoints", "1", "--delete") == 0
    assert {path.name for path in run.checkpoints.iterdir()} == {
        "step_00000004",
        "step_00000006",  # not whole: the next resume says what is wrong with it
        "step_00000005.damaged",  # nothing newer is whole
    }
    assert cli("clean", "--delete") == 0
    assert {path.name for path in run.path.parent.iterdir()} == {"small", ".other.89abcdef", "notes.old-1"}
    assert (run.metrics.is_file(), run.prompts.exists()) == (True, False)
    assert cli("clean") == 0 and "There is nothing to delete." in capsys.readouterr().out


def test_all_checkpoints_go_only_where_the_model_was_exported(run, trainer):
    run_local(run, trainer(run, DONE))
    save(run, "step_00000004")
    none = replace(NOTHING_MORE, checkpoints=0)
    assert found_in(run.path, none) == set()
    run.export.mkdir()
    (run.export / "model.safetensors").touch()
    assert found_in(run.path, none) == {"checkpoints/step_00000004"}


def test_old_runs_go_as_a_whole(run, new_run, trainer):
    run_local(run, trainer(run, DONE))
    new_run("young")
    for file in (run.run_file, run.events, run.metrics):
        os.utime(file, (0, 0))
    for record in (run.job_file, *run.path.glob("attempt_*/attempt.json")):
        record.write_text(re.sub(r"\b1[0-9]{9}(\.[0-9]+)?", "1000.0", record.read_text()))
    assert found_in(run.path.parent, replace(NOTHING_MORE, days=30)) == {"small"}
    assert found_in(run.path.parent) == set()


def test_a_run_that_lives_keeps_everything(run, launch, cli, capsys):
    launch("step(1); time.sleep(60)")
    save(run, "step_00000001"), save(run, "step_00000002"), save(run, "step_00000003.tmp")
    everything = Wanted(1e-9, 0, socket.gethostname())
    assert find_leftovers(run.path.parent, everything).leftovers == []
    assert cli("clean", "--delete", "--checkpoints", "1", "--days", "0.0000001") == 0
    assert "not touched: runs/small: small is running" in capsys.readouterr().out
    assert len(list(run.checkpoints.iterdir())) == 3


def test_what_a_run_that_lives_reads_from_is_kept(run, new_run, launch):
    change = load_run(run.run_file, [f"model.path={run.path.parent}/other.old-1/export"])
    for file in (run.run_file, run.started_file):
        file.write_text(dump_run(change))
    for name in ("other", "third"):
        new_run(name).path.rename(run.path.parent / f"{name}.old-1")
    assert found_in(run.path.parent) == {"other.old-1", "third.old-1"}
    launch("step(1); time.sleep(60)")
    found = find_leftovers(run.path.parent, NOTHING_MORE)
    assert [left.path.name for left in found.leftovers] == ["third.old-1"]
    assert (str(run.path.parent / "other.old-1"), "a run that waits or runs reads from it") in found.kept


def test_a_run_that_is_started_between_look_and_deletion_keeps_everything(run, launcher, trainer, launch):
    save(run, "step_00000003.tmp")
    (left,) = find_leftovers(run.path, NOTHING_MORE).leftovers
    launch("step(1); time.sleep(60)")
    with pytest.raises(EnvironmentProblem, match="the run small is running"):
        remove(left)
    assert left.path.is_dir()


def test_links_are_never_followed(run, new_run, tmp_path, trainer):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "precious").touch()
    old = new_run("other")
    place = run.path.parent / "other.old-1"
    old.path.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    assert found_in(run.path.parent) == set(), "a run behind a link is not deleted through it"
    place.unlink()
    (tmp_path / "moved").rename(place)
    (place / "export").symlink_to(elsewhere)
    run.checkpoints.mkdir()
    (run.checkpoints / "step_00000001.tmp").symlink_to(elsewhere)
    for left in find_leftovers(run.path.parent, NOTHING_MORE).leftovers:
        remove(left)
    assert not place.exists() and (elsewhere / "deep" / "precious").exists()


def test_memory_that_killed_servers_left_is_found_on_its_node(run):
    segment = Path(f"/dev/shm/test-{os.getpid()}-clean")
    segment.write_bytes(bytes(4096))
    try:
        file = run.path / "attempt_1" / "servers" / "node7.shm"
        file.parent.mkdir(parents=True)
        file.write_text(f"{segment}\n/dev/shm/test-never-there\n")
        assert segment_files(run, "node7") == [file] and segment_files(run, "node8") == []
        assert unused_segments(file) == [segment]
        (left,) = find_leftovers(run.path, replace(NOTHING_MORE, node="node7")).leftovers
        assert (left.path, left.bytes) == (segment, 4096)
        remove(left)
        assert not segment.exists()
    finally:
        segment.unlink(missing_ok=True)


def test_a_damaged_note_of_segments_names_none(run, cli):
    """What is no file of this name in /dev/shm is no segment: a folder there is somebody else's."""
    folder = Path(f"/dev/shm/test-{os.getpid()}-folder")
    folder.mkdir()
    try:
        file = run.path / "attempt_1" / "servers" / f"{this_node()}.shm"
        file.parent.mkdir(parents=True)
        file.write_bytes(f"{folder}\n/dev/shm/.\n/dev/shm/..\n".encode() + b"/dev/shm/\xff\xfe\0\n")
        assert cli("clean", "--delete") == 0
        assert unused_segments(file) == [] and folder.is_dir()
    finally:
        folder.rmdir()


def test_what_cannot_be_deleted_is_named(run, cli, capsys, monkeypatch):
    save(run, "step_00000003.tmp")
    monkeypatch.setattr(leftovers.shutil, "rmtree", lambda *_, **__: None)
    assert cli("clean", "--delete") == 2
    said = capsys.readouterr()
    assert "not deleted: not all of" in said.err and "0 B are free again." in said.out


def test_sweeps_go_as_a_whole_or_point_by_point(run, cli, trainer):
    folder = run.path.parent
    for name in ("rates", "others"):
        assert cli("submit", "run.yaml", "--dry-run", f"name={name}", "--sweep", "optimizer.lr=1e-6,2e-6") == 0
    (folder / "others").rename(folder / "others.old-1")
    point = RunDir(folder / "rates" / "rates-1")
    save(point, "step_00000001.tmp")
    assert found_in(folder) == {"others.old-1", "rates/rates-1/checkpoints/step_00000001.tmp"}
    assert found_in(folder / "rates") == {"rates-1/checkpoints/step_00000001.tmp"}
    (folder / "others.old-1" / "others-0" / "run.yaml").write_text("[]")
    assert "others.old-1" not in found_in(folder), "a sweep of which a run is damaged is left to people"
    assert cli("clean", "--delete") == 0
    assert (folder / "others.old-1").is_dir() and not any(point.checkpoints.iterdir())
