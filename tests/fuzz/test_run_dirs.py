"""Damaged records of runs: named and passed over, never in the way of others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from grpo_hpc.config import load_run
from grpo_hpc.jobs.prepare import create_run
from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.attempts import begin
from grpo_hpc.runs.holder import LauncherNote
from grpo_hpc.runs.submissions import note_submission
from tests.fuzz.checks import strict_json
from tests.fuzz.odd import EDITS, changed_json, damaged

FOREIGN = (
    "runs/one/attempt_1/rank_0_old.log",
    "runs/one/attempt_x/attempt.json",
    "runs/one/attempt_2/x",
    "runs/x/run.yaml",
)
FOREIGN += (
    "runs/one/attempt_9/attempt.json",
    "runs/one/checkpoints/step_x/y",
    "runs/one/stop",
    "runs/sweep.json",
    "runs/file",
)
JSON = (".json", ".jsonl")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of two runs on this machine, one of which crashed."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        cfg = load_run("quickstart", [f"name={name}"])
        run = create_run(cfg, make_plan(cfg))
        attempt = begin(run, "local", ["n1"], note_submission(run, "local").number)
        LauncherNote(attempt.folder(run)).write()
        log, sinks = EventLog(run.events), MetricSinks(run.metrics)
        for step in (1, 2):
            log.phase("rollout", step)
            values = {"time/step": 2.0, "reward/mean": 0.5, "eval/exact_number/mean": 0.25}
            sinks.log(step, values)
            log.metrics(step, values)
        (run.rank_log(attempt.folder(run), 0)).write_text("Traceback (most recent call last):\nValueError: x\n")
        attempt.end(run, "crash", "rank 0: ValueError: x", 1)
    return {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*") if _plain(file)}


def _plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and "latest" not in file.parts


@st.composite
def damage(draw: Any, files: dict[str, bytes]) -> dict[str, bytes]:
    """One or two records of the first run replaced, cut or flipped; sometimes foreign files beside them."""
    mine = sorted(name for name in files if name.startswith("runs/one/"))
    changed = {name: _changed(draw, name, files[name]) for name in draw(st.sets(st.sampled_from(mine), max_size=2))}
    foreign = {name: draw(st.binary(max_size=20)) for name in draw(st.sets(st.sampled_from(FOREIGN), max_size=1))}
    return {**files, **changed, **foreign}


def _changed(draw: Any, name: str, content: bytes) -> bytes:
    if Path(name).suffix not in JSON or not draw(st.integers(0, 2)):
        return damaged(content, draw(EDITS))
    lines = content.decode().splitlines() if name.endswith("l") else [content.decode()]
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = json.dumps(draw(changed_json(json.loads(lines[at]))), default=str)
    return "\n".join(lines).encode() + b"\n"


def test_damaged_records(fuzzing, records):
    def check(files: dict[str, bytes]) -> None:
        whole = "runs/sweep.json" not in files
        commands = ["list"], ["list", "--json"]
        found = fuzzing.run(files, *commands, allowed=(0,) if whole else (0, 2))
        found += fuzzing.run(files, ["status", "runs/one", "--json"], ["status", "runs/one"], ["logs", "runs/one"])
        found += fuzzing.run(files, ["status", "--json"], ["logs", "runs/one", "--json", "--attempt", "1"])
        for outcome in (found[1], found[2], found[5]):
            assert outcome.code != 0 or strict_json(outcome.stdout) is not None
        assert found[1].code != 0 or str(os.sep + "two") in found[1].stdout, "a damaged run hides another"

    fuzzing.cases(damage(records), check, 15)
