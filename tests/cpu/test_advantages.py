"""Advantage estimators against slow implementations, and their independence of order, layout and group sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import estimators as reference

from grpo_hpc.algo.advantages import advantages, gdpo_advantages, teaches, zero_variance_fraction
from grpo_hpc.algo.estimators import ESTIMATORS

SCALES = ["group", "batch", "none"]
score = st.one_of(st.integers(-2, 2).map(float), st.floats(-5, 5, width=32))
maybe = st.one_of(score, st.none())
batches = st.lists(st.tuples(st.sampled_from("abcd"), maybe), min_size=1, max_size=24).filter(
    lambda batch: any(reward is not None for _, reward in batch)
)


def tensor(values):
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


@given(batches, st.sampled_from(sorted(ESTIMATORS)), st.sampled_from(SCALES))
def test_equal_to_slow_implementation(batch, estimator, scale):
    prompts, rewards = [p for p, _ in batch], [r for _, r in batch]
    got = advantages(tensor(rewards), prompts, estimator, scale)
    want = reference.advantages(rewards, prompts, estimator, scale)
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-5, rtol=1e-5)


tables = st.lists(st.tuples(st.sampled_from("abc"), maybe, maybe), min_size=2, max_size=20).filter(
    lambda rows: any(value is not None for _, *values in rows for value in values)
)


@given(tables, st.tuples(st.floats(-2, 2), st.floats(0.1, 2)))
def test_gdpo_equals_slow_implementation(rows, weights):
    prompts, columns = [row[0] for row in rows], [[row[f] for row in rows] for f in (1, 2)]
    got = gdpo_advantages(torch.stack([tensor(column) for column in columns], 1), weights, prompts)
    want = reference.gdpo(columns, weights, prompts)
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-4, rtol=1e-4)


@given(batches, st.sampled_from(sorted(ESTIMATORS)), st.sampled_from(SCALES), st.randoms())
def test_order_does_not_matter(batch, estimator, scale, random):
    """Groups are found by prompt id: whatever rank gathers first, every completion keeps its advantage."""
    shuffled = random.sample(range(len(batch)), len(batch))
    prompts, rewards = [p for p, _ in batch], tensor([r for _, r in batch])
    straight = advantages(rewards, prompts, estimator, scale)
    mixed = advantages(rewards[shuffled], [prompts[i] for i in shuffled], estimator, scale)
    torch.testing.assert_close(mixed, straight[shuffled], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("scale", SCALES)
def test_equal_rewards_give_zero_exactly(estimator, scale):
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.7])
    got = advantages(rewards, list("aaabb"), estimator, scale)
    assert got[:3].tolist() == [0.0] * 3 and (got[3:] != 0).all()
    assert zero_variance_fraction(rewards, list("aaabb")) == 0.5


def test_known_values():
    rewards, prompts = torch.tensor([0.0, 1.0, 0.0, 3.0]), list("ppqq")
    assert advantages(rewards, prompts, "rloo", "none").tolist() == [-1.0, 1.0, -3.0, 3.0]
    assert advantages(rewards, prompts, "grpo", "group")[0] == pytest.approx(-0.5 / (0.5**0.5 + 1e-4))
    spread = (2 * (0.25 + 2.25) / 3) ** 0.5
    assert advantages(rewards, prompts, "reinforce_plus_plus", "batch")[3] == pytest.approx(1.5 / (spread + 1e-4))


def test_a_group_teaches_when_any_column_differs():
    columns = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, math.nan], [1.0, 2.0], [0.5, 0.5], [math.nan, 0.5]])
    prompts = list("aabbcc")
    assert teaches(columns, prompts).tolist() == [True, True, False, False, False, False]
    assert teaches(columns.sum(1), prompts).tolist() == [False] * 6, "totals of the first group are equal"
