"""Records that hold something else than was written there: named and passed over, one run never takes the others."""

from __future__ import annotations

import json
import shutil

import pytest

from grpo_hpc.observe.events import read_events
from grpo_hpc.observe.history import History
from grpo_hpc.runs.attempts import Attempt, damaged_attempts, history
from grpo_hpc.runs.run_dir import RunDir

ATTEMPT = {
    "number": 1,
    "submission": 1,
    "executor": "local",
    "job_id": None,
    "restart": 0,
    "nodes": ["n1"],
    "started": 1.0,
    "first_step": 0,
    "state": "crash",
    "reason": "exit code 1",
    "exit_code": 1,
    "ended": 2.5,
    "last_step": 3,
}
JOB = {"submissions": [{"number": 1, "executor": "local", "job_ids": [], "at": 1.0}]}
VALUES = {"reward/mean": 0.5, "time/step": 2.0, "eval/exact_number/mean": 0.1}
EVENTS = [
    {"t": 1.0, "event": "phase", "name": "rollout", "step": 1},
    {"t": 2.0, "event": "metrics", "step": 1, "values": VALUES},
    {"t": 3.0, "event": "finished", "summary": {"lines": ["done"]}},
]
METRICS = [{"step": 1, "time": 1.0, **VALUES}]

NOISE = {
    "empty": b"",
    "half": b'{"number": 1, "sub',
    "list": b"[]",
    "null": b"null",
    "nan": b"NaN",
    "bytes": b"\xff\xfe\x00\xd8",
    "nul": bytes(4096),
    "deep": b"[" * 100_000,
    "digits": b'{"number": ' + b"9" * 5000 + b"}",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.fixture
def full(original, tmp_path, request):
    """A run with all of its records, and a second one that was never started."""
    if not any(original.iterdir()):
        _fill(request.getfixturevalue("run"), original)
    shutil.copytree(original, tmp_path / "all", symlinks=True)
    return RunDir(tmp_path / "all" / "small")


def _fill(run, original):
    shutil.copytree(run.path, original / "other")
    attempt = run.new_attempt()
    (attempt / "attempt.json").write_text(json.dumps(ATTEMPT))
    (attempt / "rank_0.log").write_text("hello\n")
    (attempt / "launcher.json").write_text('{"host": "h", "pid": 1, "born": 2}')
    run.job_file.write_text(json.dumps(JOB))
    run.events.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    shutil.copytree(run.path, original / "small", symlinks=True)


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def look(cli, capsys, run, *, named):
    """Every command that reads a run, beside a whole run; what they say of ``run``."""
    assert cli("list", run.path.parent, "--json") == 0
    found = strict(capsys.readouterr().out)
    assert "other" in {one["name"] for one in found["runs"]}
    said = json.dumps([one for one in found["runs"] if one["name"] == run.path.name] + found["passed_over"])
    assert named in said, said
    assert cli("list", run.path.parent) == 0
    for words in (["status"], ["status", "--json"], ["logs"], ["logs", "--json"]):
        assert cli(*words, run.path) in (0, 2)
    capsys.readouterr()
    return found


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", ["attempt_1/attempt.json", "job.json"])
def test_a_record_of_something_else(place, noise, full, cli, capsys):
    (full.path / place).write_bytes(NOISE[noise])
    look(cli, capsys, full, named=place)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", ["events.jsonl", "metrics.jsonl"])
def test_lines_of_something_else(place, noise, full, cli, capsys):
    whole = (full.path / place).read_bytes()
    (full.path / place).write_bytes(whole + NOISE[noise] + b"\n" + whole)
    found = look(cli, capsys, full, named='"step": 1')
    (shown,) = [one for one in found["runs"] if one["name"] == full.path.name]
    assert shown["reward"] == 0.5 and shown["seconds_per_step"] == 2.0


@pytest.mark.parametrize("key", ATTEMPT)
def test_a_field_of_another_type(key, full):
    for value in (None, "x", [], {}, True, 10**400, float("nan"), float("inf"), -1, 0.5):
        (full.path / "attempt_1" / "attempt.json").write_text(json.dumps(ATTEMPT | {key: value}))
        if found := history(full):
            assert strict(json.dumps(getattr(found[0], key))) == value
        else:
            assert "attempt.json" in damaged_attempts(full)[0]


@pytest.mark.parametrize("key", ["number", "submission", "executor", "nodes", "started"])
def test_a_missing_field(key, full, cli, capsys):
    record = {name: value for name, value in ATTEMPT.items() if name != key}
    (full.path / "attempt_1" / "attempt.json").write_text(json.dumps(record))
    look(cli, capsys, full, named=f"attempt.json is damaged: {key}: ")


def test_the_record_of_another_attempt(full, cli, capsys):
    shutil.copytree(full.path / "attempt_1", full.path / "attempt_7")
    shutil.copytree(full.path / "attempt_1", full.path / "attempt_1.bak")
    assert [attempt.number for attempt in history(full)] == [1]
    look(cli, capsys, full, named="attempt_7/attempt.json is the record of attempt 1")


def test_fields_of_a_later_version_are_left_out(full):
    (full.path / "attempt_1" / "attempt.json").write_text(json.dumps(ATTEMPT | {"weather": "fine"}))
    assert history(full) == [Attempt(**ATTEMPT)]


@pytest.mark.parametrize(
    "event",
    [
        {"t": "now", "event": "phase", "name": "rollout", "step": 2},
        {"t": 4.0, "event": "phase", "name": None, "step": 2},
        {"t": 4.0, "event": "phase", "name": "rollout", "step": "2"},
        {"t": 4.0, "event": "phase", "step": 10**30, "name": "rollout"},
        {"t": 4.0, "event": ["phase"]},
        {"t": 4.0, "event": "metrics", "step": 2, "values": [1]},
        {"t": 4.0, "event": "error"},
        {"t": 4.0, "event": "error", "kind": 1, "message": "m", "hint": "h"},
        {"t": 4.0, "event": "stopped"},
        {"t": float("nan"), "event": "message", "text": "x"},
        {"event": "message", "text": "x"},
    ],
)
def test_an_event_that_is_none(event, full, cli, capsys):
    with full.events.open("a") as file:
        file.write(json.dumps(event) + "\n")
    assert [found["event"] for found in read_events(full.events)[0]] == ["phase", "metrics", "finished"]
    look(cli, capsys, full, named='"step": 1')


def test_what_is_no_number_becomes_null(full, cli, capsys):
    values = '"reward/mean": NaN, "time/step": 1e999, "eval/a/mean": Infinity, "eval/b/mean": "x", "eval/c/mean": '
    with full.metrics.open("a") as file:
        file.write('{"step": 2, ' + values + str(10**400) + "}\n")
    with full.events.open("a") as file:
        file.write('{"t": 4.0, "event": "metrics", "step": 2, "values": {' + values + "-Infinity}}\n")
    found = look(cli, capsys, full, named='"reward": null')
    (shown,) = [one for one in found["runs"] if one["name"] == full.path.name]
    assert shown["rewards"] == [0.5, None]
    assert shown["held_out"] == {"exact_number": 0.1, "a": None, "b": None, "c": None}
    assert History.read(full.metrics).last("time/step") == (2, None)


def test_foreign_files_among_the_logs(full, cli, capsys):
    attempt = full.path / "attempt_1"
    for name in ("rank_0_old.log", "rank_.log", "rank_x.log", "rank_٣.log", "rank_" + "9" * 200 + ".log"):
        (attempt / name).write_text("Traceback (most recent call last):\n  foreign\n")
    (full.path / "checkpoints").mkdir()
    for name in ("step_x", "step_²", "step_"):
        (full.path / "checkpoints" / name).mkdir()
    look(cli, capsys, full, named='"state": "crash"')
    assert cli("logs", full.path) == 0
    assert "hello" in capsys.readouterr().out


@pytest.mark.parametrize("text", [*NOISE, '{"topology": 7}', '{"topology": {"servers": 7}}'])
def test_a_damaged_plan(text, full, cli, capsys):
    full.plan_file.write_bytes(NOISE.get(text, text.encode()))
    assert cli("logs", full.path, "--server", 0) == 2
    assert "plan.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("run_name", ["../other", "/etc", "..", ""])
def test_a_sweep_of_runs_elsewhere(run_name, full, cli, capsys):
    sweep = {"keys": ["a"], "points": [{"run": run_name, "values": {"a": 1}}]}
    (full.path.parent / "sweep.json").write_text(json.dumps(sweep))
    assert cli("cancel", full.path.parent) == 2
    assert "sweep.json is damaged" in capsys.readouterr().err


def test_logs_name_what_they_pass_over(full, cli, capsys):
    (full.path / "attempt_2").mkdir()
    (full.path / "attempt_2" / "attempt.json").write_text("{")
    assert cli("logs", full.path) == 0
    said = capsys.readouterr()
    assert "hello" in said.out
    assert "attempt_2/attempt.json is damaged" in said.err
