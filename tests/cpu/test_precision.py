"""Stochastic rounding to bfloat16: neighbours only, exact on the grid, right on average, repeatable."""

from __future__ import annotations

import torch

from grpo_hpc.rollout.precision import cast


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_grid_values_stay_and_others_go_to_a_neighbour():
    grid = torch.randn(4096).bfloat16()
    assert torch.equal(cast(grid.float(), torch.bfloat16, generator()), grid)

    between = torch.randn(4096)
    rounded = cast(between, torch.bfloat16, generator()).float()
    nearest_error = torch.finfo(torch.bfloat16).eps * between.abs()
    assert ((rounded - between).abs() <= nearest_error).all()
    assert set((rounded > between).tolist()) == {True, False}


def test_small_updates_survive_on_average():
    start = torch.full((200_000,), 0.125)  # on the grid; the next value is 0.125 + 2**-10
    moved = start + 2**-10 * 0.05
    assert torch.equal(moved.bfloat16().float(), start), "rounding to nearest loses the update"
    mean = cast(moved, torch.bfloat16, generator()).double().mean().item()
    assert abs(mean - moved[0].item()) < 2**-10 * 0.002
    negative = cast(-moved, torch.bfloat16, generator()).double().mean().item()
    assert abs(negative + moved[0].item()) < 2**-10 * 0.002


def test_equal_seeds_agree_and_other_casts_are_plain():
    values = torch.randn(1000)
    assert torch.equal(cast(values, torch.bfloat16, generator(3)), cast(values, torch.bfloat16, generator(3)))
    assert not torch.equal(cast(values, torch.bfloat16, generator(3)), cast(values, torch.bfloat16, generator(4)))
    assert cast(values, torch.float32, generator()) is values
    assert torch.equal(cast(values.bfloat16(), torch.float32, generator()), values.bfloat16().float())
