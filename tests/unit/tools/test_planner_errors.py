"""What the planner says of its own errors is what its tables say today."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from grpo_hpc.plan.measured.measured_errors import FILE, accuracy
from tools.bench.planner_report import read_rows, write_report
from tools.bench.settings import SETTINGS, overrides, run_file

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "benchmarks" / "planner"
PUBLISHED = runpy.run_path(str(ROOT / "tools" / "plan_published.py"))


def test_the_page_of_measured_runs_and_the_stated_error_are_todays(monkeypatch, tmp_path) -> None:
    stated = tmp_path / "accuracy.yaml"
    monkeypatch.setattr("tools.bench.planner_report.ACCURACY", stated)
    assert write_report(RESULTS) == RESULTS.with_suffix(".md").read_text()
    assert stated.read_text() == FILE.read_text()
    for eager in (True, False):
        steps = [row.error("step") for row in read_rows(RESULTS) if row.timed and row.eager == eager]
        ends = f"{min(steps):+.0%} to {max(steps):+.0%}"
        assert f"step times {ends} on {len(steps)} measured runs" in accuracy(eager)


def test_what_ran_out_is_never_said_to_fit() -> None:
    rows = read_rows(RESULTS)
    assert [row.name for row in rows if row.ran_out and row.estimate.verdict == "fits"] == []
    assert [row.name for row in rows if row.ran and row.estimate.verdict == "does not fit"] == []


def test_published_runs_that_ran_out_do_not_fit_and_those_that_ran_do() -> None:
    for row in PUBLISHED["rows"]():
        if row.ran_out is not None:
            assert (row.estimate().verdict == "does not fit") == row.ran_out, row.name


def test_errors_of_a_run(tmp_path) -> None:
    row = next(row for row in read_rows(RESULTS) if row.name == "one")
    assert row.error("peak") == pytest.approx(row.estimate.memory.peak.total / 2**30 / row.found["peak_gib"] - 1)
    assert row.error("step") == pytest.approx(row.estimate.times.step / row.found["step_s"] - 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_run_out_are_those_that_are_meant_to(name, tmp_path) -> None:
    setting = SETTINGS[name]
    found = {"run_file": run_file(name, setting, tmp_path), "keys": overrides(setting), "shape": setting.shape}
    (tmp_path / f"{name}.json").write_text(json.dumps(found | {"frozen": setting.frozen}))
    (row,) = read_rows(tmp_path)
    assert (row.estimate.verdict == "does not fit") == name.startswith("runs-out")


def test_at_least_four_settings_are_kept_for_a_planner_that_no_longer_changes() -> None:
    assert sum(setting.frozen for setting in SETTINGS.values()) >= 4
