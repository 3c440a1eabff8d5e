"""Adapters: merged as PEFT merges them, in both formats, and extracted again."""

from __future__ import annotations

import json
import shutil

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
from grpo_hpc.models.on_disk.model_folder import INDEX, read_model

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


def merged_by_peft(base, adapter, folder=None):
    """By the names of the model in memory, or of the files that it saves in ``folder``."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    if folder is None:
        return merged.state_dict()
    merged.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def merged_by_us(base, adapter, parallel, folder):
    """The tensors of the merged folder; with ``parallel`` by way of a Megatron checkpoint of that layout."""
    source = base
    if parallel is not None:
        build(plan_to_megatron(open_folder(base), parallel), folder / "megatron", Work())
        source = folder / "megatron"
    build(plan_merge(open_folder(source), read_adapter(adapter)), folder / "merged", Work())
    result = folder / "merged"
    if parallel is not None:
        build(plan_to_hf(open_folder(result)), folder / "hf", Work())
        result = folder / "hf"
    return load_file(result / "model.safetensors")


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 40}}],
)
@pytest.mark.parametrize("parallel", [None, Parallel(tp=2, pp=2)], ids=["hf", "megatron"])
def test_merged_weights_are_pefts(parallel, options, tiny, tmp_path):
    base, adapter = tiny("llama"), adapt(tmp_path / "adapter", tiny("llama"), **options)
    want, got = merged_by_peft(base, adapter), merged_by_us(base, adapter, parallel, tmp_path)
    start = load_file(base / "model.safetensors")
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], atol=1e-6, rtol=1e-6)
        assert torch.equal(value, start[name]) == (not any(target in name for target in TARGETS)), name


EXPERTS = {
    "both": (["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], {}),
    "up": (["mlp.experts.gate_up_proj"], {"use_rslora": True}),
    "down": (["mlp.experts.down_proj"], {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"experts.down_proj": 40}}),
}


@pytest.mark.parametrize("chosen", EXPERTS)
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "deepseek_v3", "olmoe"])
@pytest.mark.parametrize("parallel", [None, Parallel(tp=2, ep=2, etp=2)], ids=["hf", "megatron"])
def test_adapters_of_fused_experts_are_merged_as_peft_does(parallel, family, chosen, tiny, tmp_path):
    parameters, options = EXPERTS[chosen]
    base = tiny(family, False)
    adapter = adapt(tmp_path / "adapter", base, targets=["o_proj"], target_parameters=parameters, **options)
    want, got = merged_by_peft(base, adapter, tmp_path / "peft"), merged_by_us(base, adapter, parallel, tmp_path)
    start = load_file(base / "model.safetensors")
    assert got.keys() == start.keys()
    matrices = {"both": "gate_proj up_proj down_proj w1 w2 w3", "up": "gate_proj up_proj w1 w3", "down": "down_proj w2"}
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], atol=1e-6, rtol=1e-6)
        changed = "o_proj" in name or (".experts." in name and name.split(".")[-2] in matrices[chosen].split())
        assert value.equal(start[name]) != changed, name


def test_the_index_of_a_merged_folder_names_what_is_there(tiny, tmp_path):
    """Leftovers of the base (frequencies of rotary embeddings) are in neither."""
    adapter, base, leftover = adapt(tmp_path / "adapter", tiny("llama")), tmp_path / "base", "x.rotary_emb.inv_freq"
    shutil.copytree(tiny("llama"), base)
    tensors = load_file(base / "model.safetensors") | {leftover: torch.ones(2)}
    (base / "model.safetensors").unlink()
    save_file(tensors, base / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (base / INDEX).write_text(json.dumps({"weight_map": places}))
    build(plan_merge(open_folder(base), read_adapter(adapter)), tmp_path / "merged", Work())
    assert read_model(tmp_path / "merged").keys() == tensors.keys() - {leftover}
    assert json.loads((tmp_path / "merged" / INDEX).read_text())["weight_map"].keys() == tensors.keys() - {leftover}


def test_a_wide_factor_is_read_in_parts(tiny, tmp_path, monkeypatch):
    base = tiny("qwen3_moe", False)
    adapter = adapt(tmp_path / "adapter", base, targets=["o_proj"], target_parameters=EXPERTS["both"][0])
    (tmp_path / "parts").mkdir()
    want = merged_by_us(base, adapter, None, tmp_path)
    monkeypatch.setattr("grpo_hpc.checkpoint.copying._PART", 200)
    build(plan_merge(open_folder(base), read_adapter(adapter)), tmp_path / "parts" / "merged", Work(1))
    assert all(value.equal(want[n]) for n, value in load_file(tmp_path / "parts/merged/model.safetensors").items())


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


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_initial_values_that_change_the_base_are_refused_with_the_way_out(start, tiny, tmp_path):
    """What the error recommends gives the trained model."""
    base = tiny("llama")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=start))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "before")
    model.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "trained")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "before"))
    with pytest.raises(CheckpointError, match=f"init_lora_weights: '{start}' .*\n.*path_initial_model_for_weight_conv"):
        read_adapter(tmp_path / "trained")
    got = merged_by_us(base, tmp_path / "plain", None, tmp_path)
    for name, value in model.merge_and_unload().state_dict().items():
        if name in got:
            torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)


def test_every_setting_of_peft_is_known_or_refused(tiny, tmp_path):
    """An allow-list: what a later peft invents is refused, and all that leaves ``B A`` alone passes."""
    adapter = adapt(tmp_path / "adapter", tiny("llama"), targets=["q_proj"])
    for start in (True, False, "gaussian", "eva", "orthogonal", "mica"):
        change_config(adapter, init_lora_weights=start, eva_config={"rho": 2.0}, lora_dropout=0.1)
        read_adapter(adapter)
    change_config(adapter, init_lora_weights="loftq")
    with pytest.raises(CheckpointError, match=r"'loftq' takes a part out of the base.*\nMerge it with the tool"):
        read_adapter(adapter)
    change_config(adapter, init_lora_weights=True)
    for key in ("use_dora", "kasa_config", "use_bdlora", "layer_replication", "modules_to_save", "of_next_year"):
        change_config(adapter, **{key: ["x"]})
        with pytest.raises(CheckpointError, match=rf"{key}: \['x'\] is not supported\nLet peft do it"):
            read_adapter(adapter)
        change_config(adapter, **{key: None})
    change_config(adapter, bias="lora_only")
    with pytest.raises(CheckpointError, match="bias: 'lora_only': trained biases"):
        read_adapter(adapter)
    change_config(adapter, bias="none", r=8)
    with pytest.raises(CheckpointError, match=r"lora_A.weight' in .* is \[4, 128\], but .* says rank 8"):
        plan_merge(open_folder(tiny("llama")), read_adapter(adapter))


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
