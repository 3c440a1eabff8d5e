"""Plans that take lengths and rates from a run, held against runs that were measured (docs/benchmarks/planner)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from grpo_hpc.config import RunConfig, load_run
from grpo_hpc.errors import PlanError
from grpo_hpc.plan.make import make_plan
from grpo_hpc.plan.measured.like_run import pace_of
from grpo_hpc.plan.measured.pace import Lengths, Pace
from grpo_hpc.plan.rates import Times
from grpo_hpc.plan.search import search_run
from tests.unit.plan.planning import CONFIGS, quickstart, shipped
from tools.bench.random_model import SHAPES

RESULTS = CONFIGS.parent / "docs" / "benchmarks" / "planner"


@dataclass(frozen=True)
class Recorded:
    name: str
    cfg: RunConfig
    seconds: dict[str, float]
    step: float
    lengths: Lengths

    @property
    def pace(self) -> Pace:
        return pace_of(self.cfg, self.seconds, self.lengths)

    def error(self, pace: Pace | None) -> float:
        return abs(times(self.cfg, pace).step / self.step - 1)


def times(cfg: RunConfig, pace: Pace | None = None) -> Times:
    estimate = make_plan(cfg, pace=pace).estimate
    assert estimate is not None and estimate.times is not None
    return estimate.times


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recorded]:
    found = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    ran = {name: facts for name, facts in found.items() if "step_s" in facts}
    return {name: read(name, facts, tmp_path_factory.mktemp(name)) for name, facts in sorted(ran.items())}


def read(name: str, facts: dict[str, Any], folder: Path) -> Recorded:
    """Lengths were even from 1 to the longest, or all the longest, as the mean tells (tools/bench/settings.py)."""
    sizes = {"max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
    (folder / "config.json").write_text(json.dumps(SHAPES[facts["shape"]] | sizes))
    facts["run_file"]["model"]["path"] = str(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(facts["run_file"]))
    cfg = load_run(folder / "run.yaml", facts["keys"])
    longest, mean = float(cfg.rollout.max_completion_length), facts["mean_length"]
    even = [min(longest, 2 * mean) * (part + 0.5) / 100 for part in range(99)]
    lengths = [longest, longest] if mean > 0.95 * longest else [*even, longest]
    return Recorded(name, cfg, facts["phases_s"], facts["step_s"], Lengths(None, tuple(lengths)))


def test_a_plan_like_a_run_agrees_with_that_run(recorded):
    without = [run.error(None) for run in recorded.values()]
    like = [run.error(run.pace) for run in recorded.values()]
    assert len(like) >= 29
    assert max(like) < 0.02 < fmean(without), "what is left are phases of a few milliseconds"


def test_a_plan_like_the_same_job_of_another_day_is_nearer(recorded):
    """With CUDA graphs; without them the host sets the pace, and hosts differ from day to day by more than plans do."""
    pairs = [(name, f"{name}-again") for name in ("bench-equal", "bench-spread")]
    pairs += [(other, one) for one, other in pairs]
    without = fmean(recorded[other].error(None) for _, other in pairs)
    like = fmean(recorded[other].error(recorded[one].pace) for one, other in pairs)
    assert without > 0.15 and like < without / 3


def test_lengths_alone_mend_the_worst_of_a_plan(recorded):
    """Completions were twice as long as a plan assumes that nobody tells."""
    run, again = recorded["bench-equal"], recorded["bench-equal-again"]
    assert again.error(None) > 0.3
    assert again.error(replace(run.pace, factors=())) < 0.05


def test_measured_lengths_take_the_place_of_assumed_ones():
    cfg = shipped("qwen3_8b")
    longest = cfg.rollout.max_completion_length
    even = Pace("run", Lengths(None, tuple(longest * (part + 0.5) / 200 for part in range(200))))
    assert times(cfg, even).seconds("rollout") == pytest.approx(times(cfg).seconds("rollout"), rel=0.15)
    few_long = Pace("run", Lengths(200, (100.0,) * 99 + (float(longest),)))
    short = times(cfg, few_long)
    assert short.seconds("train") < times(cfg).seconds("train"), "prompts, too, are as long as they were"
    all_short = times(cfg, Pace("run", Lengths(200, (100.0,) * 100)))
    assert short.seconds("rollout") > 3 * all_short.seconds("rollout"), "all wait for the longest"
    too_long = Pace("run", Lengths(None, (10.0 * longest,)))
    estimate = make_plan(cfg, pace=too_long).estimate
    assert estimate is not None and estimate.task.average == longest, "cut off where the new run cuts off"


def test_a_search_takes_the_pace():
    cfg = shipped("qwen3_8b")
    lengths = Lengths(None, (500.0, 700.0))
    plain = search_run(cfg, None, None, Pace("run", lengths))[0].best[0]
    slow = Pace("run", lengths, (("train", 3.0), ("rollout", 1.0)), reward=0.01)
    found = search_run(cfg, None, None, slow)[0].best[0]
    assert plain.times is not None and found.times is not None
    assert found.times.step > plain.times.step and found.times.seconds("reward") > 0
    assert any("* 3.00 as in run" in part.formula for phase in found.times.phases for part in phase.parts)


def test_a_run_on_a_cpu_says_nothing_of_times():
    with pytest.raises(PlanError, match="on a CPU"):
        pace_of(quickstart(), {"train": 1.0}, Lengths(None, (1.0,)))


def test_a_run_for_a_cpu_has_no_use_for_a_pace():
    with pytest.raises(PlanError, match="for a CPU"):
        make_plan(quickstart(), pace=Pace("run", Lengths(None, (1.0,))))
