"""Measurements on several GPUs: each has its own, nothing waits for ever, failures are told."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import pytest

from tools.gpu_reports import STAGES, Task, expected_seconds, in_order, main, run

NOTE = "import json, os, sys, time; s = time.time(); time.sleep(float(sys.argv[2])); " + (
    "json.dump([os.environ['CUDA_VISIBLE_DEVICES'], sys.argv[3], s, time.time()], open(sys.argv[1], 'w'))"
)


def task(folder, name, gpus, seconds=1):
    return Task(name, gpus, seconds, [sys.executable, "-c", NOTE, str(folder / name), "0.4", "$GPUS"])


def test_no_gpu_is_given_to_two_tasks_at_a_time(tmp_path, capsys) -> None:
    names = {"pair": 2, "other-pair": 2, **{f"single{n}": 1 for n in range(5)}}
    failing = Task("failing", 1, 1, [sys.executable, "-c", "raise SystemExit(3)"])
    tasks = [*(task(tmp_path, name, gpus) for name, gpus in names.items()), failing]
    assert run(tasks, ["0", "1", "2"], tmp_path) == 1
    found = {name: json.loads((tmp_path / name).read_text()) for name in names}
    used: dict[str, list[tuple[float, float]]] = {}
    for name, (shown, told, start, end) in found.items():
        assert shown == told and len(shown.split(",")) == names[name]
        for gpu in shown.split(","):
            used.setdefault(gpu, []).append((start, end))
    assert sorted(used) == ["0", "1", "2"]
    for times in used.values():
        times.sort()
        assert all(first[1] <= second[0] for first, second in pairwise(times))
    said = capsys.readouterr().out
    assert f"failing: FAILED (3), see {tmp_path / 'failing'}.log" in said and said.count("done") == len(names)


def test_what_hangs_is_ended(tmp_path, capsys) -> None:
    hanging = Task("hanging", 1, 0, [sys.executable, "-c", "import time; time.sleep(600)"])
    assert run([hanging], ["0"], tmp_path) == 1
    assert hanging.process is not None and hanging.process.poll() == -9


def test_pairs_begin_first_then_the_longest(tmp_path) -> None:
    tasks = [task(tmp_path, "short", 1, 5), task(tmp_path, "long", 1, 50), task(tmp_path, "pair", 2, 10)]
    assert [each.name for each in in_order(tasks)] == ["pair", "long", "short"]
    assert expected_seconds(tasks, 2) == 60 and expected_seconds(tasks, 4) == 50


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_can_be_read_before_it_runs(stage, tmp_path, capsys) -> None:
    names = [each.name for each in STAGES[stage](tmp_path, tmp_path)]
    assert names and len(set(names)) == len(names)
    assert main([str(tmp_path / "out"), stage, "--gpus", "0,1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in names) and not (tmp_path / "out").exists()


def test_too_few_gpus_or_no_such_task(tmp_path, capsys) -> None:
    assert main([str(tmp_path), "frozen", "--gpus", "0"]) == 2
    assert "2 GPUs are needed and 1 are visible" in capsys.readouterr().err
    assert main([str(tmp_path), "tests", "--gpus", "0,1", "--only", "tset"]) == 2
