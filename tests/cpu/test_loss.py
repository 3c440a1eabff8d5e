"""The GRPO objective against a scalar implementation written from the paper, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.algo.loss import grpo_loss, kl_k3, sample_mean_weights

logprob = st.floats(-8.0, -0.0078125, width=32)
token = st.tuples(logprob, logprob, logprob, st.floats(-3, 3, width=32))


def slow_token(lp, old, ref, advantage, low, high, beta):
    """Loss and its derivative with respect to ``lp``, case by case."""
    ratio = math.exp(lp - old)
    clipped = min(max(ratio, 1 - low), 1 + high)
    if ratio * advantage <= clipped * advantage:
        surrogate, slope = ratio * advantage, ratio * advantage
    else:
        surrogate, slope = clipped * advantage, 0.0
    d = ref - lp
    return beta * (math.exp(d) - d - 1) - surrogate, beta * (1 - math.exp(d)) - slope


@given(st.lists(token, min_size=1, max_size=8), st.sampled_from([0.0, 0.3]))
def test_equal_to_scalar_implementation(tokens, beta):
    lp, old, ref, advantage = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    lp.requires_grad_()
    got = grpo_loss(lp, old, ref, advantage, epsilon=0.2, epsilon_high=0.28, beta=beta)
    (slope,) = torch.autograd.grad(got.loss.sum(), lp)
    want = [slow_token(*row, 0.2, 0.28, beta) for row in tokens]
    torch.testing.assert_close(got.loss.detach(), torch.tensor([v for v, _ in want], dtype=torch.float64))
    # at the kinks there is no slope to compare
    away = [(abs(r - 0.8) > 1e-6 and abs(r - 1.28) > 1e-6) for r in (lp - old).exp().tolist()]
    for mine, (_, theirs), smooth in zip(slope.tolist(), want, away, strict=True):
        assert not smooth or mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_on_policy_has_ratio_one_and_the_policy_gradient():
    lp = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -2.0])
    got = grpo_loss(lp, None, None, advantages, epsilon=0.2, epsilon_high=0.2, beta=0.0)
    got.loss.sum().backward()
    assert got.ratio.tolist() == [1.0, 1.0] and not got.clipped.any()
    torch.testing.assert_close(lp.grad, -advantages)


def test_kl_is_zero_only_at_equality():
    assert kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0])).item() == 0.0
    assert (kl_k3(torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])) > 0).all()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 4))
def test_weights_do_not_depend_on_the_split(lengths, parts):
    whole = sample_mean_weights(lengths, len(lengths))
    split = [w for at in range(parts) for w in sample_mean_weights(lengths[at::parts], len(lengths))]
    assert sorted(whole) == pytest.approx(sorted(split))
    assert sum(w * n for w, n in zip(whole, lengths, strict=True)) == pytest.approx(1.0)
