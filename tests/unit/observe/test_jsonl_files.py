"""The files a run writes: half lines, damaged lines, values that are not finite, and going back after a resume."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from grpo_hpc.observe import jsonl
from grpo_hpc.observe.events import EventLog, read_events
from grpo_hpc.observe.history import History
from grpo_hpc.observe.sinks import MetricSinks


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_followed_from_an_offset(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.phase("rollout", 3)
    log.progress(1, 4)
    first, offset = read_events(path, 0)
    log.metrics(3, {"loss": 0.5})
    log.finished({"lines": ["done"]})
    second, end = read_events(path, offset)
    assert [event["event"] for event in first] == ["phase", "progress"]
    assert [event["event"] for event in second] == ["metrics", "finished"]
    assert second[0]["values"] == {"loss": 0.5} and second[0]["t"] >= first[0]["t"] > 1e9
    assert end == path.stat().st_size


def test_progress_is_noted_once_a_second_at_most(tmp_path, monkeypatch):
    now = 5.0
    monkeypatch.setattr("grpo_hpc.observe.events.time.monotonic", lambda: now)
    log = EventLog(tmp_path / "events.jsonl")
    for done in range(1, 9):
        log.progress(done, 8)
        now += 0.4
    assert [event["done"] for event in read_events(tmp_path / "events.jsonl")[0]] == [1, 4, 7]


def test_a_half_written_line_waits_and_a_damaged_one_is_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"t": 1, "event": "a"}\n\xff{]\n{"t": 1, "event": "b"}\n{"t": 1, "event": ')
    events, offset = read_events(path, 0)
    assert [event["event"] for event in events] == ["a", "b"]
    with path.open("ab") as file:
        file.write(b'"c"}\n')
    assert [event["event"] for event in read_events(path, offset)[0]] == ["c"]


def test_a_line_that_never_ends_costs_no_memory(tmp_path, monkeypatch):
    """A hole that a machine left where it lost power."""
    monkeypatch.setattr(jsonl, "_LONGEST_LINE", 100)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bytes(1050) + b'\n{"a": 2}\n{"b": "' + b"x" * 300)
    records, offset = jsonl.read_from(path)
    assert records == [{"a": 1}, {"a": 2}] and path.read_bytes()[offset:].startswith(b'{"b"')
    with path.open("ab") as file:
        file.write(b'"}\n{"a": 3}\n')
    assert jsonl.read_from(path, offset) == ([{"a": 3}], path.stat().st_size)


def test_a_new_writer_closes_off_a_half_written_line(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"t": 1, "event": "a"}\n{"t": 1, "event": "tor')
    EventLog(path).message("hello")
    assert [event["event"] for event in read_events(path)[0]] == ["a", "message"]


def test_a_file_that_is_not_there_is_empty(tmp_path):
    assert read_events(tmp_path / "none.jsonl", 0) == ([], 0)


def test_metrics_rows_and_rewind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sinks = MetricSinks(path)
    for step in range(4):
        sinks.log(step, {"loss": float(step), "kl": math.nan, "grad_norm": math.inf})
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
    sinks.rewind(2)
    sinks.log(3, {"loss": 30.0})
    assert [(row["step"], row["loss"]) for row in lines(path)] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
    assert lines(path)[1]["kl"] is None and lines(path)[1]["grad_norm"] is None
    sinks.rewind(0)
    assert lines(path) == []


def test_rewinding_what_was_never_written(tmp_path):
    MetricSinks(tmp_path / "metrics.jsonl").rewind(0)


def test_history_reads_what_sinks_write(tmp_path):
    sinks = MetricSinks(tmp_path / "metrics.jsonl")
    sinks.log(0, {"eval/x/mean": 0.25})
    sinks.log(1, {"loss": 1.0})
    sinks.log(2, {"loss": math.nan})
    history = History.read(tmp_path / "metrics.jsonl")
    assert history.series("loss") == {1: 1.0, 2: None}
    assert history.last("loss") == (2, None)
    assert history.names("eval/") == ["eval/x/mean"] and history.names() == ["eval/x/mean", "loss"]
    history.forget_after(0)
    assert history.names() == ["eval/x/mean"] and history.last("loss") is None


FULL_DISK = """
import resource, signal, sys
from grpo_hpc.observe.jsonl import JsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
lines = JsonLines(sys.argv[1])
lines.write([{"n": 1}])
try:
    lines.write([{"n": 2, "text": "x" * 200}])
except OSError as error:
    print("refused", error.errno)
lines.write([{"n": 3}])
"""


def test_a_row_that_does_not_fit_is_not_there_at_all(tmp_path):
    """A limit of the file's size makes short writes, as a full disk does."""
    path = tmp_path / "x.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused"), done.stderr
    assert path.read_text() == '{"n": 1}\n{"n": 3}\n'


@pytest.mark.parametrize("row", ['{"a": 1}', '{"step": null}', '{"step": "2"}', '{"step": NaN}', "[1]", "{"])
def test_rewinding_drops_rows_that_are_none(row, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + row + '\n{"step": 3}\n')
    MetricSinks(path).rewind(2)
    assert path.read_text() == '{"step": 1}\n'
