"""The error that the planner states is that of its table of published runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

from grpo_hpc.plan.accuracy import FILE, accuracy

TOOL = runpy.run_path(str(Path(__file__).parents[3] / "tools" / "plan_published.py"))


def test_the_stated_error_is_that_of_todays_planner() -> None:
    stated = yaml.safe_load(FILE.read_text())
    assert stated.keys() == TOOL["accuracy"]().keys()
    for what, errors in TOOL["accuracy"]().items():
        assert stated[what] == pytest.approx(errors, abs=0.011)
    assert f"{stated['time']['lowest']:+.0%} to {stated['time']['highest']:+.0%}" in accuracy()


def test_runs_that_ran_out_do_not_fit_and_those_that_ran_do() -> None:
    for row in TOOL["rows"]():
        if row.ran_out is not None:
            assert (row.estimate().verdict == "does not fit") == row.ran_out, row.name
