"""Damaged and foreign inputs: each is named, and nothing half-made is left under the final name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from enum import Enum

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.naming import Parallel
from grpo_hpc.checkpoint.run import Work, build
from grpo_hpc.checkpoint.to_hf import plan_to_hf
from grpo_hpc.checkpoint.to_megatron import plan_to_megatron
from grpo_hpc.checkpoint.verify import verify_equal, verify_whole
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.hf_folder import HfFolder
from grpo_hpc.models.on_disk.model_folder import INDEX

LAST = "model.layers.3.self_attn.v_proj.weight"


@pytest.fixture
def sharded(tiny, tmp_path):
    """A model of three shards with an index."""
    tensors = load_file(tiny("llama") / "model.safetensors")
    folder, places, names = tmp_path / "model", {}, sorted(tensors)
    folder.mkdir()
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = names[number::3]
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    shutil.copy(tiny("llama") / "config.json", folder)
    return folder


@pytest.fixture
def megatron(tiny, tmp_path):
    """A checkpoint of ours in two files."""
    build(plan_to_megatron(open_folder(tiny("llama")), Parallel(pp=2)), tmp_path / "megatron", Work())
    return tmp_path / "megatron"


def shard_of(folder, name):
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def rewrite(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def truncate(file):
    os.truncate(file, file.stat().st_size - 100)


def lengthen(file):
    with file.open("ab") as out:
        out.write(b"more")


def damage_header(file):
    data = bytearray(file.read_bytes())
    data[20:60] = b"#" * 40
    file.write_bytes(data)


def duplicate(file):
    folder = file.parent
    for other in folder.glob("*.safetensors"):
        if other != file:
            rewrite(other, lambda tensors: tensors.update({LAST: torch.zeros(2)}))
            return


FAULTS = {
    "truncated": (truncate, r"model-0000\d-of-00003.safetensors has .* bytes, but its header describes"),
    "too long": (lengthen, "but its header describes"),
    "empty": (lambda file: file.write_bytes(b""), "is no whole safetensors file"),
    "damaged header": (damage_header, "the header of .* is damaged"),
    "missing": (lambda file: file.unlink(), "is missing, though"),
    "duplicated": (duplicate, f"tensor '{LAST}' is twice"),
    "tensor lost": (lambda file: rewrite(file, lambda t: t.pop(LAST)), f"tensor '{LAST}' is missing"),
    "wrong dtype": (
        lambda file: rewrite(file, lambda t: t.update({LAST: t[LAST].half()})),
        f"tensor '{LAST}' in .* is float16, but the model is float32",
    ),
    "quantised": (
        lambda file: rewrite(file, lambda t: t.update({LAST: t[LAST].to(torch.int8)})),
        f"'{LAST}' in .* is int8: quantised models are neither trained nor converted",
    ),
    "wrong shape": (
        lambda file: rewrite(file, lambda t: t.update({LAST: t[LAST][:-1].clone()})),
        rf"'{LAST}' in .* has the shape \(127, 128\), but config.json asks for \(128, 128\)",
    ),
    "unknown tensor": (
        lambda file: rewrite(file, lambda t: t.update({"model.extra": torch.zeros(2)})),
        r"does not explain: \['model.extra'\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_shard_is_named(fault, sharded, tmp_path):
    change, said = FAULTS[fault]
    change(shard_of(sharded, LAST))
    with pytest.raises(CheckpointError, match=said):
        build(plan_to_megatron(open_folder(sharded), Parallel()), tmp_path / "out", Work())
    assert not (tmp_path / "out").exists()


def test_a_whole_sharded_folder_is_converted(sharded, tmp_path):
    build(plan_to_megatron(open_folder(sharded), Parallel(tp=2)), tmp_path / "out", Work())
    assert not verify_equal(open_folder(sharded), open_folder(tmp_path / "out"), Work()).faults


def test_known_leftovers_are_not_converted(sharded, tmp_path):
    """What Mistral and older versions of transformers put beside the weights: no part of the model, in any command."""
    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(16) for layer in range(4)}
    rewrite(shard_of(sharded, LAST), lambda tensors: tensors.update(frequencies))
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    (sharded / INDEX).write_text(
        json.dumps({"weight_map": places | dict.fromkeys(frequencies, shard_of(sharded, LAST).name)})
    )
    save_file({"tok_embeddings.weight": torch.ones(2)}, sharded / "consolidated.safetensors")
    build(plan_to_megatron(open_folder(sharded), Parallel(tp=2)), tmp_path / "megatron", Work())
    build(plan_to_hf(open_folder(tmp_path / "megatron")), tmp_path / "hf", Work())
    for folder in ("megatron", "hf"):
        assert not verify_equal(open_folder(sharded), open_folder(tmp_path / folder), Work()).faults
    assert HfFolder(sharded).tensors.keys() == load_file(tmp_path / "hf" / "model.safetensors").keys()


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_flipped_bit_of_ours_is_found(workers, megatron, tmp_path):
    chunk = open_folder(megatron).tensors["decoder.layers.mlp.linear_fc2.weight"].chunks[1]
    flip(chunk.file, chunk.offset + 7)
    with pytest.raises(CheckpointError, match=rf"linear_fc2.weight in .*{chunk.file.name} is corrupted"):
        build(plan_to_hf(open_folder(megatron)), tmp_path / "out", Work(workers))
    assert not (tmp_path / "out").exists()
    (fault,) = verify_whole(open_folder(megatron), Work(workers)).faults
    assert "linear_fc2.weight" in fault


def test_one_flipped_bit_of_megatrons_is_found(tmp_path):
    """What torch.save wrote carries a CRC-32."""
    from grpo_hpc.checkpoint.copies import Check
    from grpo_hpc.checkpoint.copying import Copier
    from grpo_hpc.checkpoint.torch_file import locate

    file, tensor = tmp_path / "t", torch.arange(100.0)
    torch.save(tensor, file)
    offset, crc = locate(file, 0, file.stat().st_size, 400)
    check = Check("t", file, offset, 400, crc)
    Copier(1 << 20).check(check)
    flip(file, offset + 399)
    with pytest.raises(CheckpointError, match=r"t in .* is corrupted"):
        Copier(1 << 20).check(check)


def test_files_of_a_checkpoint_are_named(megatron):
    file = megatron / "__1_0.distcp"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(CheckpointError, match=r"__1_0.distcp is truncated"):
        open_folder(megatron)
    (megatron / "manifest.json").unlink()
    os.truncate(file, size // 2)
    with pytest.raises(CheckpointError, match=r"__1_0.distcp is truncated"):
        open_folder(megatron)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"__1_0.distcp is missing"):
        open_folder(megatron)


def test_a_foreign_index_cannot_run_code(megatron, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (megatron / "manifest.json").unlink()
    (megatron / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"posix.mkdir has no place in an index"):
        open_folder(megatron)
    assert not (tmp_path / "ran").exists()
    (megatron / ".metadata").write_bytes(pickle.dumps({"not": "an index"}))
    with pytest.raises(CheckpointError, match="is no index of a distributed checkpoint"):
        open_folder(megatron)
    (megatron / ".metadata").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        open_folder(megatron)


def test_an_index_that_an_early_python_311_wrote_is_read(megatron):
    """Its enumerations are pickled as calls of getattr, none of which is made."""

    class Early(pickle.Pickler):
        def reducer_override(self, value):
            return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented

    before = sorted(open_folder(megatron).tensors)
    index = pickle.loads((megatron / ".metadata").read_bytes())
    (megatron / "manifest.json").unlink()
    with (megatron / ".metadata").open("wb") as file:
        Early(file).dump(index)
    assert b"getattr" in (megatron / ".metadata").read_bytes()
    assert sorted(open_folder(megatron).tensors) == before


def test_what_differs_is_named(sharded, megatron):
    rewrite(shard_of(sharded, LAST), lambda t: t[LAST].view(-1).__setitem__(5, 3.0))
    (fault,) = verify_equal(open_folder(sharded), open_folder(megatron), Work()).faults
    assert fault.startswith(f"{LAST}: ") and "bytes differ" in fault
    rewrite(shard_of(sharded, LAST), lambda t: t.update({LAST: t[LAST].bfloat16()}))
    (fault,) = verify_equal(open_folder(sharded), open_folder(megatron), Work()).faults
    assert fault == f"{LAST}: bfloat16 [128, 128] in A, float32 [128, 128] in B"


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Parallel(tp=3), "4 query heads and 2 key/value heads cannot be split over tp 3"),
        (Parallel(pp=5), "4 layers cannot be put into 5 stages"),
        (Parallel(ep=2), "has none here"),
    ],
)
def test_an_impossible_layout_is_refused(layout, said, tiny):
    with pytest.raises(CheckpointError, match=said):
        plan_to_megatron(open_folder(tiny("llama")), layout)


def test_too_little_memory_is_refused_with_the_least_that_does(tiny, tmp_path):
    plan = plan_to_megatron(open_folder(tiny("llama")), Parallel())
    with pytest.raises(CheckpointError, match=r"too little for 2 workers\nAt least \d+MB") as error:
        build(plan, tmp_path / "out", Work(2, 50 * 2**20))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists(), error


def test_an_existing_target_is_not_touched(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        build(plan_to_megatron(open_folder(tiny("llama")), Parallel()), tmp_path / "out", Work())


SLOW = """
import time
from enum import Enum
from grpo_hpc.checkpoint.run import in_workers
try:
    print("begun", flush=True)
    for _ in in_workers(time.sleep, enumerate([2.0] * 6), 1 << 20, 2):
        pass
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("seconds", [0.2, 3.0])  # while workers start, and while they work
def test_ctrl_c_shows_no_tracebacks_of_workers(seconds):
    command = [sys.executable, "-c", SLOW]
    ours = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert ours.stdout.readline() == "begun\n"
    time.sleep(seconds)
    os.killpg(ours.pid, signal.SIGINT)  # as a terminal does
    assert ours.communicate(timeout=60) == ("interrupted\n", "")
