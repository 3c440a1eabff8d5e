"""Damage never costs memory or a traceback: a folder is read as it is, or the fault is named."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.index_file import METADATA, read_index
from grpo_hpc.checkpoint.inspect import summary, tree
from grpo_hpc.checkpoint.manifest import NAME
from grpo_hpc.errors import CheckpointError
from grpo_hpc.models.on_disk.model_folder import INDEX

ROOM = 256 * 2**20
SECONDS = 60
LONG_BINPUT = pickle.LONG_BINPUT + (2**32 - 2).to_bytes(4, "little")


def bounded(work: Callable[[], None]) -> None:
    """``work`` in a child that may take 256 MiB more than it has."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        return
    try:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def look_at(folder: Path) -> None:
    try:
        found = open_folder(folder)
        summary(found)
        tree(found)
    except CheckpointError:
        pass


@pytest.mark.parametrize("name", [METADATA, NAME, "*.distcp", "model.safetensors"])
def test_any_flipped_bits(name, model, megatron):
    folder = model if name == "model.safetensors" else megatron
    file = next(iter(sorted(folder.glob(name))))
    whole = file.read_bytes()
    bits = st.integers(0, min(8 * len(whole), 60_000) - 1)

    @settings(max_examples=150, database=None, derandomize=True)
    @given(st.lists(bits, min_size=1, max_size=3, unique=True))
    def flipped(places):
        data = bytearray(whole)
        for place in places:
            data[place // 8] ^= 1 << place % 8
        file.write_bytes(data)
        look_at(folder)

    bounded(flipped)


def test_a_bit_that_asks_for_a_long_table(megatron):
    """R and r differ in one bit: a call becomes a place in the memo, whose number is whatever follows."""
    file = megatron / METADATA
    whole = file.read_bytes()
    calls = [at for at, byte in enumerate(whole) if byte == ord("R")]

    def flipped():
        for at in calls:
            file.write_bytes(whole[:at] + b"r" + whole[at + 1 :])
            look_at(megatron)

    bounded(flipped)


@pytest.mark.parametrize(
    "foreign",
    [
        pickle.PROTO + b"\2" + pickle.NONE + LONG_BINPUT + pickle.STOP,
        pickle.PROTO + b"\5" + pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little") + pickle.STOP,
        pickle.PROTO + b"\2" + pickle.BINUNICODE + (2**32 - 1).to_bytes(4, "little") + b"short",
        pickle.PROTO + b"\2" + pickle.LONG4 + (2**31 - 1).to_bytes(4, "little"),
        pickle.PROTO + b"\2" + b"cos\nsystem\n" + pickle.BINUNICODE + b"\2\0\0\0id" + pickle.TUPLE1 + b"R.",
        b"",
        b"\xff" * 64,
    ],
    ids=["memo", "bytearray", "text", "integer", "code", "nothing", "noise"],
)
def test_an_index_that_no_pickler_writes(foreign, tmp_path):
    (tmp_path / METADATA).write_bytes(foreign)

    def read():
        with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
            read_index(tmp_path)

    bounded(read)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_protocol_of_a_pickler_is_read(protocol, tmp_path):
    whole = {"names": [f"name {n}" for n in range(3_000)], "sizes": (1, 2**20, -3, 2**40, 0.5), "none": (None, True)}
    (tmp_path / METADATA).write_bytes(pickle.dumps(whole, protocol))
    assert read_index(tmp_path) == whole


def test_chunks_that_do_not_make_up_a_tensor(megatron):
    file = megatron / METADATA
    vocab = b"\x8a\x01\x40" if b"\x8a\x01\x40" in file.read_bytes() else b"K\x40"
    file.write_bytes(file.read_bytes().replace(vocab, vocab[:-1] + b"\x41", 1))
    with pytest.raises(CheckpointError, match="do not make up its shape"):
        open_folder(megatron)


@pytest.mark.parametrize("said", ["12three", "../../elsewhere", "", "٣", "9" * 50, "a\0b"])
def test_an_iteration_that_is_no_number(said, megatron):
    (megatron.rename(megatron.parent / "iter_0000012").parent / "latest_checkpointed_iteration.txt").write_text(said)
    with pytest.raises(CheckpointError, match="is no iteration"):
        open_folder(megatron.parent)


def test_the_newest_iteration_is_found(megatron):
    megatron.rename(megatron.parent / "iter_0000012")
    (megatron.parent / "latest_checkpointed_iteration.txt").write_text("12\n")
    assert open_folder(megatron.parent).path.name == "iter_0000012"


@pytest.mark.parametrize("text", ["model: 7", "[]", "model: {path: [1]}", "a: b: c", "model: {path: /no}", "\0", "{"])
def test_a_foreign_run_file_around_a_checkpoint(text, megatron):
    (megatron / "hf" / "config.json").unlink()
    (megatron / "hf").rmdir()
    (megatron / NAME).unlink()
    (megatron.parent / "run.yaml").write_text(text)
    assert open_folder(megatron).config is None


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/passwd", "..", "sub/model.safetensors", "a\0b", ""])
def test_an_index_that_leaves_its_folder(outside, model):
    (model / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": outside}}))
    with pytest.raises(CheckpointError, match=r"no file of its own folder"):
        open_folder(model)


@pytest.mark.parametrize("outside", ["../x", "/etc/passwd", "a\0b"])
def test_a_manifest_that_leaves_its_folder(outside, megatron):
    listed = json.loads((megatron / NAME).read_text())
    listed["files"][outside] = {"size": 1, "pieces": []}
    (megatron / NAME).write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match=r"no file of its own folder"):
        open_folder(megatron)


@pytest.mark.parametrize(
    "piece", [[1, 2], ["x", -1, 2, "d"], ["x", 0, 10**12, "d"], ["x", 0, 1, None], ["x", "0", 1, ""]]
)
def test_a_piece_that_is_none(piece, megatron):
    listed = json.loads((megatron / NAME).read_text())
    next(iter(listed["files"].values()))["pieces"].append(piece)
    (megatron / NAME).write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_folder(megatron)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"digest": 1}', '{"digest": 1, "files": []}', '{"digest": 1, "files": {"a": 1}}']
)
def test_a_manifest_of_another_form(text, megatron):
    (megatron / NAME).write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_folder(megatron)


@pytest.mark.parametrize("name", [METADATA, NAME, "model.safetensors", INDEX, "latest_checkpointed_iteration.txt"])
def test_a_pipe_is_not_waited_for(name, model, megatron):
    folder = megatron if (megatron / name).exists() else model
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

    def look():
        signal.alarm(20)
        with pytest.raises(CheckpointError):
            open_folder(folder)

    bounded(look)
