"""Group advantages against a slow implementation, and their independence of order."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.algo.advantages import group_advantages, zero_variance_fraction

completions = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(-5, 5, width=32)), min_size=1, max_size=24)


def slow(rewards, prompts, scale):
    out = []
    for reward, prompt in zip(rewards, prompts, strict=True):
        group = [r for r, p in zip(rewards, prompts, strict=True) if p == prompt]
        spread = statistics.stdev(group) if len(group) > 1 else 0.0
        out.append((reward - statistics.fmean(group)) / (1.0 if scale == "none" else spread + 1e-4))
    return out


@given(completions, st.sampled_from(["group", "none"]))
def test_equal_to_slow_implementation(batch, scale):
    prompts, rewards = [p for p, _ in batch], [r for _, r in batch]
    got = group_advantages(torch.tensor(rewards), prompts, scale)
    torch.testing.assert_close(got, torch.tensor(slow(rewards, prompts, scale)), atol=1e-4, rtol=1e-4)


@given(completions, st.randoms())
def test_order_does_not_matter(batch, random):
    shuffled = random.sample(range(len(batch)), len(batch))
    prompts, rewards = [p for p, _ in batch], torch.tensor([r for _, r in batch])
    straight = group_advantages(rewards, prompts, "group")
    mixed = group_advantages(rewards[shuffled], [prompts[i] for i in shuffled], "group")
    torch.testing.assert_close(mixed, straight[shuffled], atol=1e-5, rtol=1e-5)


def test_equal_rewards_give_zero_and_are_counted():
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert group_advantages(rewards, list("aabb"), "group")[:2].tolist() == [0.0, 0.0]
    assert zero_variance_fraction(rewards, list("aabb")) == 0.5


def test_known_values():
    got = group_advantages(torch.tensor([0.0, 1.0]), ["p", "p"], "group")
    assert got.tolist() == pytest.approx([-0.5 / (0.5**0.5 + 1e-4), 0.5 / (0.5**0.5 + 1e-4)])
