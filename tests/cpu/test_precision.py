"""Stochastic rounding to bfloat16: neighbours only, exact on the grid, right on average, repeatable."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from grpo_hpc.models.families import family
from grpo_hpc.models.hf_folder import write_hf_folder
from grpo_hpc.rollout.weights.precision import cast, for_engine


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


def test_the_bias_of_an_expert_stays_in_float32_on_its_way_to_the_engine_and_in_an_export(tiny, tmp_path):
    source = tiny("deepseek_v3", tied=False)
    tensors = load_file(source / "model.safetensors")
    sent = dict(for_engine(tensors.items(), torch.bfloat16, generator()))
    write_hf_folder(
        tensors.items(), tmp_path / "out", source, {}, torch.bfloat16, float32=family("deepseek_v3").float32
    )
    written = load_file(tmp_path / "out" / "model.safetensors")
    biases = [name for name in tensors if name.endswith("e_score_correction_bias")]
    assert len(biases) == 3 and all(sent[n].equal(tensors[n]) and written[n].equal(tensors[n]) for n in biases)
    others = tensors.keys() - set(biases)
    assert all(sent[name].dtype == written[name].dtype == torch.bfloat16 for name in others)
