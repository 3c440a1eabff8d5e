"""The table of metrics and the page made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_hpc.observe.metrics import METRICS, lookup, markdown, reward_name

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_is_current():
    assert PAGE.read_text() == markdown(), "run: python -m grpo_hpc.observe.metrics > docs/metrics.md"


def test_reward_functions_fill_in_their_name():
    assert lookup("rewards/my/own/mean") is METRICS["rewards/<name>/mean"]
    assert lookup("eval/exact/mean") is METRICS["eval/<name>/mean"]
    assert lookup("loss") is METRICS["loss"]
    assert lookup("nonsense") is None and lookup("eval/exact") is None
    assert reward_name("rewards/exact/mean") == reward_name("eval/exact/mean") == "exact"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("reward/mean", 0.12345, "0.123"),
        ("loss", -3e-9, "0"),
        ("loss", 0.0, "0"),
        ("learning_rate", 1e-6, "1.0e-06"),
        ("throughput/train_tokens_per_s", 1234.5, "1234 tok/s"),
        ("loss", None, "nan"),
    ],
)
def test_values_as_people_read_them(name, value, shown):
    assert METRICS[name].show(value) == shown


def test_names_in_the_trainer_are_in_the_table():
    """Every metric that the trainer writes is explained: its literal names are looked up here."""
    import re

    package = PAGE.parents[1] / "grpo_hpc"
    names = re.findall(r'"([a-z_]+(?:/[a-z_]+)*)"(?::|\] =)', (package / "train" / "step_metrics.py").read_text())
    names += re.findall(r'"([a-z_0-9]+/[a-z_0-9]+)": ', (package / "algo" / "measure.py").read_text())
    rows = {"prompt_id", "sample", "messages", "completion", "rewards", "advantage", "tokens", "finish_reason"}
    rows |= {
        "mean_rollout_logprob",
        "weight_version",
        "by_token",
        "position",
        "reward",
        "dropped",
        "failures",
        "turns",
        "environment_failure",
    }  # keys of completions, not metrics
    assert len(names) > 40
    assert [name for name in names if name not in rows and lookup(name) is None] == []
