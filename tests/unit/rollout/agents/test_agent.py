"""What agents give as their outcome, from processes that nobody trusts."""

from __future__ import annotations

import pytest

from grpo_hpc.rollout.agents.agent import Outcome, outcome_of
from grpo_hpc.rollout.environments.protocol import EpisodeFailed


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (None, Outcome()),
        (2, Outcome(2.0)),
        (True, Outcome(1.0)),
        ({"reward": 0.5, "counts": {"looks": 3}}, Outcome(0.5, {"looks": 3})),
        ({"counts": {}}, Outcome()),
    ],
)
def test_an_outcome(value, outcome):
    assert outcome_of(value) == outcome


@pytest.mark.parametrize(
    "value",
    ["1", [1], float("nan"), float("inf"), -float("inf"), 1e40, 10**400, {"score": 1}, {"reward": [1]},
     {"counts": {"a": 1.5}}, {"counts": {"a": -1}}, {"counts": [1]}, {"counts": {"a": True}}, {"counts": {"a": 2**40}}],
)  # fmt: skip
def test_no_outcome(value):
    with pytest.raises(EpisodeFailed) as caught:
        outcome_of(value)
    assert caught.value.kind == "error" and len(caught.value.text) < 200
