"""Conversion of real folders: exact round trips, Megatron-Core as reader and writer, kills, memory, verification."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from runfiles import write_run
from safetensors.torch import load_file, save_file
from tiny import OWN, has_experts, save_tiny_model

from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.naming import Parallel, layers_and_experts
from grpo_hpc.checkpoint.run import JOURNAL, Work, build
from grpo_hpc.checkpoint.to_hf import plan_to_hf
from grpo_hpc.checkpoint.to_megatron import hf_names, plan_to_megatron
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import shape_of
from grpo_hpc.models.on_disk.safetensors_file import plan_file

ROOT = Path(__file__).parents[2]
MOE = {name for name in OWN if has_experts(name)}
# three layers do not come out even over two stages, and four ranks are more than the two key/value heads
LAYOUTS = {
    "one": Parallel(),
    "tp4 pp2": Parallel(tp=4, pp=2),
    "tp2 pp3 ep2 etp2": Parallel(tp=2, pp=3, ep=2, etp=2),
    "pp1 vpp3": Parallel(vpp=3, tp=2),
}


@pytest.fixture(scope="session")
def three_layers(tmp_path_factory):
    """``three_layers(family, tied)``: a small random model, kept for the session."""
    made = {}

    def make(family, tied=False):
        if (family, tied) not in made:
            made[family, tied] = save_tiny_model(tmp_path_factory.mktemp("model"), family, tied, layers=3)
        return made[family, tied]

    return make


def weights(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8))
        for name in one
    )


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "tied"), [*((name, False) for name in OWN), ("llama", True), ("qwen3_vl", True)])
def test_round_trip_is_bit_identical(family, tied, layout, three_layers, tmp_path):
    parallel = LAYOUTS[layout]
    if family not in MOE:
        parallel = dataclasses.replace(parallel, ep=1, etp=1)
    source = three_layers(family, tied)
    opened = open_files()
    build(plan_to_megatron(open_folder(source), parallel), tmp_path / "megatron", Work())
    build(plan_to_hf(open_folder(tmp_path / "megatron"), shard_bytes=200_000), tmp_path / "hf", Work())
    assert open_files() == opened, "every file is closed again"
    assert same_bits(weights(source), weights(tmp_path / "hf"))
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "hf" / name).read_bytes() == (source / name).read_bytes()
    stored = open_folder(tmp_path / "megatron").tensors["embedding.word_embeddings.weight"]
    assert stored.shape[0] % parallel.tp == 0 and stored.shape[0] - 263 < parallel.tp, "padded no more than needed"


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def with_head(three_layers, tmp_path):
    """``with_head(change)``: a tied model whose files hold a head: the embedding, the last number changed."""

    def make(change):
        folder = tmp_path / "with_head"
        shutil.copytree(three_layers("llama", True), folder, dirs_exist_ok=True)
        tensors = load_file(folder / "model.safetensors")
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors[HEAD][-1, -1] += change
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def test_a_head_that_is_the_embedding_is_stored_once_and_compared(with_head, three_layers, tmp_path):
    source = with_head(0.0)
    assert (
        "left out, as it is no part of the model: lm_head.weight"
        in command("convert", source, tmp_path / "megatron", "--tp", 2).stdout
    )
    command("convert", tmp_path / "megatron", tmp_path / "hf")
    assert same_bits(weights(tmp_path / "hf"), weights(three_layers("llama", True)))
    for one, other in ((source, tmp_path / "megatron"), (tmp_path / "hf", source)):
        said = json.loads(command("verify", one, other, "--json").stdout)
        assert said["equal"] and said["checked"] == len(weights(source)), "the head, too"
    (fault,) = json.loads(command("verify", with_head(0.5), tmp_path / "hf", "--json", code=1).stdout)["faults"]
    assert fault.startswith(f"{HEAD}: ") and "bytes differ" in fault


def test_a_trained_head_is_not_dropped_where_the_configuration_ties_it(with_head, tmp_path):
    source = with_head(0.5)
    said = command("convert", source, tmp_path / "megatron", code=2).stderr
    assert f"says tie_word_embeddings: true, but '{HEAD}' in" in said and "it was trained by itself" in said
    assert not (tmp_path / "megatron").exists()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))  # what the error says
    command("convert", source, tmp_path / "megatron")
    command("convert", tmp_path / "megatron", tmp_path / "hf")
    assert same_bits(weights(source), weights(tmp_path / "hf"))


def test_a_trained_output_layer_of_megatron_is_not_dropped_either(three_layers, tmp_path):
    """Of a checkpoint whose configuration ties what was trained apart, or what is the same."""
    source, tied = tmp_path / "source", tmp_path / "tied"
    shutil.copytree(three_layers("llama"), source)
    tied.mkdir()
    config = json.loads((source / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    build(plan_to_megatron(open_folder(source), Parallel(tp=2)), tmp_path / "megatron", Work())
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight' and 'output_layer.weight' of .* differ"):
        plan_to_hf(open_folder(tmp_path / "megatron", tied))
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, source / "model.safetensors", metadata={"format": "pt"})
    build(plan_to_megatron(open_folder(source), Parallel(tp=2)), tmp_path / "same", Work())
    build(plan_to_hf(open_folder(tmp_path / "same", tied)), tmp_path / "hf", Work())
    assert weights(tmp_path / "hf").keys() == tensors.keys() - {HEAD}


@pytest.mark.parametrize(
    ("family", "extra"),
    [("deepseek_v3", "model.layers.3.eh_proj.weight"), ("qwen2", "model.mtp_layers.0.input_proj.weight")],
)
def test_what_a_family_leaves_out_is_named(family, extra, three_layers, tmp_path):
    """Layers for multi-token prediction: of DeepSeek-V3, and of MiMo, which is a Qwen2 otherwise."""
    source = tmp_path / "source"
    shutil.copytree(three_layers(family), source)
    tensors = load_file(source / "model.safetensors") | {extra: torch.ones(2, 2)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert f"no part of the model: {extra}\n" in command("convert", source, tmp_path / "megatron").stdout
    said = command("verify", source, tmp_path / "megatron").stdout
    assert f"not compared, as it is no part of the model: {extra}\n" in said and "all equal" in said


@pytest.fixture(scope="session")
def smollm2():
    """The quickstart's model; made when it is not there yet."""
    folder = ROOT / "models" / "SmolLM2-135M-Instruct"
    subprocess.run([sys.executable, ROOT / "tools" / "make_demo_model.py", "--target", folder], check=True)
    return folder


def test_a_real_model_and_its_logits(smollm2, tmp_path):
    command("convert", smollm2, tmp_path / "megatron", "--tp", 3, "--pp", 4)
    command("convert", tmp_path / "megatron", tmp_path / "hf")
    assert same_bits(weights(smollm2), weights(tmp_path / "hf"))
    said = json.loads(command("verify", tmp_path / "megatron", smollm2, "--logits", "The sea is", "--json").stdout)
    assert said["equal"] and said["checked"] == 272 and said["logits"] < 1e-4
    assert "all equal" in command("verify", tmp_path / "megatron").stdout


def command(*words, code=0):
    """Run ``grpo-hpc checkpoint``."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "grpo_hpc.cli", "checkpoint", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run


# How Megatron itself is asked to load and save: ranks, and how the run file and the converted checkpoint are cut.
RANKS = {
    "one": (1, {}, Parallel(tp=4, pp=3)),
    "tp2": (2, {"tensor_model_parallel_size": 2}, Parallel(pp=2)),
    "pp2": (2, {"pipeline_model_parallel_size": 2}, Parallel(tp=2)),
    "ep2": (2, {"expert_model_parallel_size": 2}, Parallel(tp=2)),
}


@pytest.mark.parametrize("ranks", RANKS)
def test_megatron_core_loads_ours_and_we_read_what_it_saves(ranks, tiny, tmp_path):
    world, layout, cut = RANKS[ranks]
    dense = ["llama", "qwen2", "qwen3", "phi3", "olmo2", "hunyuan_v1_dense"]
    families = {"tp2": dense, "ep2": sorted(MOE)}.get(ranks, [*dense, *sorted(MOE)])
    runs = []
    for number, family in enumerate(families):
        own = dataclasses.replace(cut, ep=2 if family in MOE else 1)
        build(plan_to_megatron(open_folder(tiny(family)), own), tmp_path / f"{number}_megatron", Work())
        runs.append(write_run(tmp_path, tiny(family), name=f"run{number}", nproc_per_node=world, **layout))
    run_ranks("megatron_checkpoint", world, tmp_path, *runs)
    for number, family in enumerate(families):
        saved = open_folder(tmp_path / f"{number}_saved", tiny(family))
        build(plan_to_hf(saved), tmp_path / f"{number}_hf", Work())
        assert same_bits(weights(tiny(family)), weights(tmp_path / f"{number}_hf")), family
        assert saved.checks(), "what Megatron saves carries checksums"


@pytest.mark.parametrize("optimizer", ["plain", "distributed"])
def test_a_resharded_run_goes_on(optimizer, tiny, tmp_path):
    """Two steps on one rank, reshard, two more on two ranks: the weights of four steps on one rank."""
    choice = {"use_distributed_optimizer": optimizer == "distributed", "reshardable": True}
    one = write_run(tmp_path, tiny("qwen3"), name="one", **choice)
    two = write_run(tmp_path, tiny("qwen3"), name="two", nproc_per_node=2, tensor_model_parallel_size=2, **choice)
    run_ranks("reshard", 1, tmp_path, one, "save")
    assert "common.pt" in (tmp_path / "saved/step_00000002/manifest.json").read_text()
    command("verify", tmp_path / "saved/step_00000002")  # by the digests that the trainer took
    command("reshard", tmp_path / "saved/step_00000002", tmp_path / "cut", "--tp", 2, "--hf-config", tiny("qwen3"))
    run_ranks("reshard", 2, tmp_path, two, "go_on")
    want, got = load_file(tmp_path / "four.safetensors"), load_file(tmp_path / "went_on.safetensors")
    assert want.keys() == got.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=1e-4 * float(value.abs().max()), rtol=0)
    start = load_file(tiny("qwen3") / "model.safetensors")
    assert all(not torch.equal(got[name], start[name]) for name in got), "the steps did something"


def big_model(folder, layers=44):
    """A Llama of 2.7 GB in bf16 whose weights are zero: its shards are holes and take no room."""
    config = {
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": 32003,
        "hidden_size": 1024,
        "intermediate_size": 8192,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [
        (name, "bfloat16", size)
        for rule in weight_map(shape_of(config))
        for layer, expert in layers_and_experts(rule)
        for name, size in zip(hf_names(rule, layer, expert), rule.layout.hf_shapes, strict=True)
    ]
    header, places = plan_file(tensors)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(header)
        out.truncate(places[-1].offset + places[-1].nbytes)
    return folder


def test_peak_memory_stays_below_the_limit(tmp_path):
    source, limit = big_model(tmp_path / "model"), 700
    size = (source / "model.safetensors").stat().st_size
    assert size > 3.5 * limit * 2**20
    words = ["convert", source, tmp_path / "megatron", "--workers", 2, "--max-memory", f"{limit}MB", "--tp", 2]
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "grpo_hpc.cli", "checkpoint", *map(str, words)])
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in [process.pid, *children(process.pid)]:
            peaks[pid] = max(peaks.get(pid, 0), high_water(pid))
        time.sleep(0.02)
    assert process.returncode == 0
    assert len(peaks) >= 3 and max(peaks.values()) > 40, f"the measurement saw the processes: {peaks}"
    assert sum(peaks.values()) <= limit, f"peak resident MiB by process: {peaks}"


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid):
    """Whether a process runs; one that has ended may stay listed where nobody waits for orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def high_water(pid):
    """Peak resident MiB of a process, as the kernel keeps it; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def test_a_killed_conversion_goes_on(tmp_path):
    source = big_model(tmp_path / "model", layers=16)
    target, partial = tmp_path / "megatron", tmp_path / "megatron.partial"
    words = [sys.executable, "-W", "ignore", "-m", "grpo_hpc.cli", "checkpoint", "convert", source, target]
    process = subprocess.Popen([*map(str, words), "--workers", "2"], start_new_session=True)
    journal = partial / JOURNAL
    while not journal.exists() or len(journal.read_text().splitlines()) < 3:
        assert process.poll() is None, "it must not be done before it is killed"
        time.sleep(0.002)
    orphans = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not target.exists() and not (partial / "manifest.json").exists()
    with pytest.raises(CheckpointError, match="neither"):
        open_folder(partial)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in orphans) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert orphans and not any(alive(pid) for pid in orphans), "workers leave with their parent"

    steps = []
    plan = plan_to_megatron(open_folder(source), Parallel())
    build(plan, target, Work(progress=lambda done, total: steps.append((done, total))))
    assert 0 < steps[0][0] < steps[0][1], "what was done before the kill was not done again"
    assert open_folder(target).manifest is not None and not partial.exists()
    assert "all equal" in command("verify", target, source).stdout


def test_a_piece_damaged_after_the_kill_is_made_again(three_layers, tmp_path):
    plan, target = plan_to_megatron(open_folder(three_layers("llama")), Parallel()), tmp_path / "megatron"

    class StoppedError(Exception):
        pass

    def stop(done, total):
        if done == total:
            raise StoppedError

    with pytest.raises(StoppedError):
        build(plan, target, Work(progress=stop))
    file = tmp_path / "megatron.partial" / "__0_0.distcp"
    with file.open("r+b") as out:
        out.seek(file.stat().st_size // 2)
        out.write(b"damaged!")
    build(plan, target, Work())
    build(plan_to_hf(open_folder(target)), tmp_path / "hf", Work())
    assert same_bits(weights(three_layers("llama")), weights(tmp_path / "hf"))
