"""Adapters: merged as PEFT merges them, in both formats, and extracted again."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.naming import Parallel
from grpo_hpc.checkpoint.peft_adapters import extract, plan_merge, read_adapter
from grpo_hpc.checkpoint.run import Work, build
from grpo_hpc.checkpoint.to_hf import plan_to_hf
from grpo_hpc.checkpoint.to_megatron import plan_to_megatron
from grpo_hpc.errors import CheckpointError

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapt(folder, base, **options):
    """A random adapter of ``base`` as PEFT saves it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=options.pop("targets", TARGETS), **options)
    model = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def merged_by_peft(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 40}}],
)
@pytest.mark.parametrize("parallel", [None, Parallel(tp=2, pp=2)], ids=["hf", "megatron"])
def test_merged_weights_are_pefts(parallel, options, tiny, tmp_path):
    base, adapter = tiny("llama"), adapt(tmp_path / "adapter", tiny("llama"), **options)
    source = base
    if parallel is not None:
        build(plan_to_megatron(open_folder(base), parallel), tmp_path / "megatron", Work())
        source = tmp_path / "megatron"
    build(plan_merge(open_folder(source), read_adapter(adapter)), tmp_path / "merged", Work())
    result = tmp_path / "merged"
    if parallel is not None:
        build(plan_to_hf(open_folder(result)), tmp_path / "hf", Work())
        result = tmp_path / "hf"
    want, got, start = merged_by_peft(base, adapter), *(load_file(f / "model.safetensors") for f in (result, base))
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], atol=1e-6, rtol=1e-6)
        assert torch.equal(value, start[name]) == (not any(target in name for target in TARGETS)), name


def test_bfloat16_is_rounded_once(tiny, tmp_path):
    adapter = adapt(tmp_path / "adapter", tiny("qwen3", False))
    AutoModelForCausalLM.from_pretrained(tiny("qwen3", False), dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    build(plan_merge(open_folder(tmp_path / "base"), read_adapter(adapter)), tmp_path / "merged", Work())
    want = merged_by_peft(tmp_path / "base", adapter)  # in float32, from the same bfloat16 weights
    for name, value in load_file(tmp_path / "merged" / "model.safetensors").items():
        assert value.dtype == torch.bfloat16
        rounded = want[name].bfloat16()
        assert (value == rounded).float().mean() > 0.999, "a sum on the border may round either way"
        torch.testing.assert_close(value, rounded, atol=0, rtol=2**-7)


def test_an_adapter_comes_back_from_what_it_made(tiny, tmp_path):
    base, adapter = tiny("llama"), adapt(tmp_path / "adapter", tiny("llama"))
    build(plan_merge(open_folder(base), read_adapter(adapter)), tmp_path / "merged", Work())
    missed = extract(open_folder(base), open_folder(tmp_path / "merged"), tmp_path / "again", rank=4)
    assert len(missed) == 7 * 4 and max(missed.values()) < 1e-4
    want, got = merged_by_peft(base, adapter), merged_by_peft(base, tmp_path / "again")
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)
    with_less = extract(open_folder(base), open_folder(tmp_path / "merged"), tmp_path / "less", rank=1)
    assert min(with_less.values()) > 0.1, "rank 1 must miss some of rank 4"


def change_config(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_cannot_be_merged_is_refused(tiny, tmp_path):
    base, adapter = tiny("llama"), adapt(tmp_path / "adapter", tiny("llama"), targets=["q_proj"])
    with pytest.raises(CheckpointError, match=r"makes a matrix \(256, 128\), but the weight is \(128, 128\)"):
        plan_merge(open_folder(tiny("mixtral")), read_adapter(adapter))
    change_config(adapter, use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora: True is not supported"):
        read_adapter(adapter)
    change_config(adapter, use_dora=False)
    tensors = load_file(adapter / "adapter_model.safetensors")
    one = next(name for name in tensors if "lora_B" in name)
    save_file({name: value for name, value in tensors.items() if name != one}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="no pair of matrices"):
        read_adapter(adapter)
    save_file({n.replace("layers.3", "layers.9"): v for n, v in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="trained on another model"):
        plan_merge(open_folder(base), read_adapter(adapter))
