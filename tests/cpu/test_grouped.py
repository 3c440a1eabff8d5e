"""The experts' grouped product against a loop over experts: values, gradients, idle and frozen experts, Megatron's
fp32 buffer. The experts of whole models are in the tests of layouts, adapters and routing."""

from __future__ import annotations

import pytest
import torch

from grpo_hpc.models.grouped import grouped_linear

COUNTS = (3, 0, 9, 1, 0)


def _parts(trained=(True,) * 5, features=8):
    torch.manual_seed(0)
    tokens = torch.randn(sum(COUNTS), features, requires_grad=True)
    weights = [torch.nn.Parameter(torch.randn(16, features), requires_grad=learns) for learns in trained]
    return tokens, weights


def _loop(tokens, weights):
    return torch.cat([part @ weight.T for part, weight in zip(tokens.split(COUNTS), weights, strict=True)])


@pytest.mark.parametrize("features", [8, 6])
@pytest.mark.parametrize("trained", [(True,) * 5, (False,) * 5, (True, True, False, True, False)])
def test_values_and_gradients_are_those_of_a_loop(trained, features):
    """Also where the kernel cannot read the rows."""
    tokens, weights = _parts(trained, features)
    made, want = grouped_linear(tokens, COUNTS, weights), _loop(tokens, weights)
    assert made.allclose(want, atol=1e-5)
    sought = [tokens, *(weight for weight in weights if weight.requires_grad)]
    onward = torch.randn_like(want)
    for got, expected in zip(
        torch.autograd.grad(made, sought, onward), torch.autograd.grad(want, sought, onward), strict=True
    ):
        assert got.allclose(expected, atol=1e-5)


def test_no_tokens_at_all_have_gradients_of_zero():
    """Other ranks wait for this one's backward pass."""
    tokens, weights = torch.randn(0, 8, requires_grad=True), _parts()[1]
    made = grouped_linear(tokens, [0] * 5, weights, in_place=True, shown=False)
    assert made.shape == (0, 16)
    made.sum().backward()
    assert tokens.grad.shape == (0, 8)
    assert all(weight.grad.eq(0).all() for weight in weights)


def test_tokens_that_need_no_gradient():
    tokens, weights = _parts()
    grouped_linear(tokens.detach(), COUNTS, weights).sum().backward()
    assert weights[0].grad.allclose(tokens[:3].sum(0).detach().expand(16, 8), atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("shown", [True, False])
def test_gradients_are_added_to_megatrons_buffer(shown, at_once, monkeypatch):
    """With autograd's knowledge or without it."""
    monkeypatch.setattr("grpo_hpc.models.grouped._AT_ONCE", at_once)
    tokens, weights = _parts((True, True, True, False, True))
    for weight in weights:
        weight.main_grad = torch.ones_like(weight)
        weight.grad_added_to_main_grad = False
    onward = torch.randn(sum(COUNTS), 16)
    want = torch.autograd.grad(_loop(tokens, weights), [weights[0], weights[2]], onward)
    grouped_linear(tokens, COUNTS, weights, in_place=True, shown=shown).backward(onward)
    assert (weights[0].grad is not None) == shown
    assert (weights[0].main_grad - 1).allclose(want[0], atol=1e-5)
    assert (weights[2].main_grad - 1).allclose(want[1], atol=1e-5)
    assert weights[1].main_grad.eq(1).all() and weights[3].main_grad.eq(1).all()
    assert [weight.grad_added_to_main_grad for weight in weights] == [True, True, True, False, True]


def test_weights_learn_where_tokens_do_not():
    """Autograd would ask for nothing if it did not know of them."""
    tokens, weights = _parts()
    for weight in weights:
        weight.main_grad = torch.zeros_like(weight)
    grouped_linear(tokens.detach(), COUNTS, weights, in_place=True, shown=False).sum().backward()
    assert weights[0].main_grad.allclose(tokens[:3].sum(0).detach().expand(16, 8), atol=1e-5)
