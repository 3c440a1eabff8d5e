"""Quantised folders become plain ones in bfloat16, as torch multiplies them out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model

from grpo_hpc.checkpoint.dequantise import plan_dequantise
from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.run import Work, build
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families.read_shape import read_shape

BLOCK = 48  # no divisor of the sizes: blocks at both edges are cut short
FP8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def spread(scale, block, shape):
    """A scale for each number."""
    return scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]


def blocks(name, weight):
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    scale = torch.rand(rows, columns) + 0.01
    low = (weight.float() / spread(scale, (BLOCK, BLOCK), weight.shape)).to(torch.float8_e4m3fn)
    plain = low.float() * spread(scale, (BLOCK, BLOCK), weight.shape)
    return {name: low, f"{name}_scale_inv": scale}, plain


def channels(name, weight):
    scale = (torch.rand(len(weight), 1) + 0.01).bfloat16()
    low = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {name: low, f"{name}_scale": scale}, low.float() * scale.float()


def whole(name, weight):
    low = (weight.float() / 0.003).to(torch.float8_e4m3fn)
    beside = {f"{name}_scale": torch.tensor(0.003), name.replace(".weight", ".input_scale"): torch.tensor(1.0)}
    return {name: low, **beside}, low.float() * torch.tensor(0.003)


def packed(name, weight):
    rows, columns = weight.shape
    scale = (torch.rand(rows, columns // 8) / 8 + 0.01).bfloat16()
    numbers = torch.randint(-8, 8, weight.shape, dtype=torch.int64)
    words = ((numbers + 8).view(rows, -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    size = torch.tensor(weight.shape)
    tensors = {f"{name}_packed": words, f"{name}_scale": scale, f"{name}_shape": size}
    return tensors, numbers.float() * scale.float().repeat_interleave(8, 1)


KINDS = {"blocks": (blocks, FP8), "channels": (channels, PACKED), "whole": (whole, FP8), "int4": (packed, PACKED)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("plain"), "deepseek_v3", False, layers=2)


def quantised(model, folder, quantise, settings):
    """A quantised copy of ``model``, and what its tensors are worth in bfloat16."""
    folder.mkdir()
    tensors, plain = {}, {}
    for name, value in load_file(model / "model.safetensors").items():
        if value.dim() == 2 and "proj" in name and "o_proj" not in name:
            made, worth = quantise(name, value)
            tensors, plain[name] = tensors | made, worth.bfloat16()
        else:
            tensors[name] = plain[name] = value if "bias" in name else value.bfloat16()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings, "dtype": "bfloat16"}))
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_torch(kind, model, tmp_path):
    want = quantised(model, tmp_path / "low", *KINDS[kind])
    build(plan_dequantise(open_folder(tmp_path / "low"), shard_bytes=200_000), tmp_path / "plain", Work())
    got = {
        name: value for file in (tmp_path / "plain").glob("*.safetensors") for name, value in load_file(file).items()
    }
    assert got.keys() == want.keys() and len(got) > 20
    for name, value in want.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name
    assert read_shape(tmp_path / "plain") == read_shape(model)


def test_the_command_makes_a_model_that_transformers_and_megatron_take(model, tmp_path):
    from transformers import AutoModelForCausalLM

    want = quantised(model, tmp_path / "low", *KINDS["blocks"])
    refused = command("convert", tmp_path / "low", tmp_path / "megatron", code=2)
    assert "checkpoint convert SRC DST --to hf" in refused
    command("convert", tmp_path / "low", tmp_path / "plain", "--to", "hf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in want.items() if name in loaded)
    command("convert", tmp_path / "plain", tmp_path / "megatron", "--tp", 2)
    command("verify", tmp_path / "megatron", tmp_path / "plain")


def command(*words, code=0):
    """Run ``grpo-hpc checkpoint``."""
    program = [sys.executable, "-W", "ignore", "-m", "grpo_hpc.cli", "checkpoint"]
    run = subprocess.run([*program, *map(str, words)], capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


def without_scale(name, weight):
    return {name: weight.to(torch.float8_e4m3fn)}, weight


def scale_of_another_size(name, weight):
    made, worth = blocks(name, weight)
    return made | {f"{name}_scale_inv": torch.ones(3, 7)}, worth


def with_zero_points(name, weight):
    made, worth = packed(name, weight)
    return made | {f"{name}_zero_point": torch.zeros(2, 2, dtype=torch.int32)}, worth


def of_another_size(name, weight):
    made, worth = packed(name, weight)
    return made | {f"{name}_shape": torch.tensor([3, 5])}, worth


def whole_numbers(name, weight):
    return {name: weight.to(torch.int8)}, weight


@pytest.mark.parametrize(
    ("quantise", "settings", "said"),
    [
        (without_scale, FP8, "without a scale"),
        (scale_of_another_size, FP8, "it would be"),
        (with_zero_points, PACKED, "packed in a way that is not read"),
        (of_another_size, PACKED, r"says \[3, 5\]"),
        (whole_numbers, FP8, "int8, which is read neither plain nor quantised"),
        (blocks, {"quant_method": "gptq"}, "'gptq' is not read"),
        (blocks, FP8 | {"weight_block_size": [0, "x"]}, "weight_block_size"),
    ],
)
def test_what_cannot_be_read_is_refused(quantise, settings, said, model, tmp_path):
    quantised(model, tmp_path / "low", quantise, settings)
    with pytest.raises(CheckpointError, match=said):
        plan_dequantise(open_folder(tmp_path / "low"))
