"""The experts' grouped product against a loop over experts: values, gradients, idle and frozen experts, Megatron's
fp32 buffer."""

from __future__ import annotations

import pytest
import torch

from grpo_hpc.models.grouped import group_products, grouped_linear, keep_gradients_to_experts

COUNTS = (3, 0, 9, 1, 0)


def _parts(trained=(True,) * 5):
    torch.manual_seed(0)
    tokens = torch.randn(sum(COUNTS), 8, requires_grad=True)
    weights = [torch.nn.Parameter(torch.randn(16, 8), requires_grad=learns) for learns in trained]
    return tokens, weights


def _loop(tokens, weights):
    return torch.cat([part @ weight.T for part, weight in zip(tokens.split(COUNTS), weights, strict=True)])


@pytest.mark.parametrize("trained", [(True,) * 5, (False,) * 5, (True, True, False, True, False)])
def test_values_and_gradients_are_those_of_a_loop(trained):
    tokens, weights = _parts(trained)
    made, want = grouped_linear(tokens, COUNTS, weights), _loop(tokens, weights)
    assert made.allclose(want, atol=1e-5)
    sought = [tokens, *(weight for weight in weights if weight.requires_grad)]
    onward = torch.randn_like(want)
    for got, expected in zip(
        torch.autograd.grad(made, sought, onward), torch.autograd.grad(want, sought, onward), strict=True
    ):
        assert got.allclose(expected, atol=1e-5)


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


class Experts(torch.nn.Module):
    """Has what TransformerEngine's module of experts has."""

    def __init__(self, rows):
        super().__init__()
        self.num_gemms, self.fuse_wgrad_accumulation = 2, False
        self.weight0, self.weight1 = (torch.nn.Parameter(torch.randn(rows, 8)) for _ in range(2))

    def forward(self, tokens, counts):
        return "its own", None


def test_weights_learn_where_tokens_do_not():
    """Autograd would ask for nothing if it did not know of them."""
    tokens, weights = _parts()
    for weight in weights:
        weight.main_grad = torch.zeros_like(weight)
    grouped_linear(tokens.detach(), COUNTS, weights, in_place=True, shown=False).sum().backward()
    assert weights[0].main_grad.allclose(tokens[:3].sum(0).detach().expand(16, 8), atol=1e-5)


@pytest.mark.parametrize("overlap", [True, False])
def test_gradients_are_kept_from_autograd_unless_it_is_waited_for(overlap):
    experts = Experts(16)
    group_products(experts)
    experts.fuse_wgrad_accumulation = True
    for weight in experts.parameters():
        weight.main_grad = torch.zeros_like(weight)
    if not overlap:
        keep_gradients_to_experts(experts)
    experts(torch.randn(5, 8, requires_grad=True), [2, 3])[0].sum().backward()
    assert experts.weight1.main_grad.any()
    assert (experts.weight1.grad is not None) == overlap


@pytest.mark.parametrize(("rows", "grouped"), [(16, True), (6, False)])
def test_modules_whose_rows_the_kernel_can_read_are_replaced(rows, grouped):
    experts = Experts(rows)
    group_products(torch.nn.Sequential(experts, torch.nn.Linear(2, 2)))
    tokens = torch.randn(5, 8)
    made, bias = experts(tokens, [2, 3])
    assert bias is None
    if grouped:
        want = torch.cat([tokens[:2] @ experts.weight0.T, tokens[2:] @ experts.weight1.T])
        assert made.allclose(want, atol=1e-5)
    else:
        assert made == "its own"
    assert experts(tokens[:0], [0, 0]) == ("its own", None)
