"""Damaged model folders and checkpoints: the faults are named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from grpo_hpc.cli import main
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.on_disk.safetensors_file import plan_file
from grpo_hpc.models.weight_map import entries
from tests.fuzz.odd import EDITS, changed_json, damaged

SMALL = {
    "model_type": "llama",
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"), 8),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1),
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
INDEX = "hf/model.safetensors.index.json"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, bytes]:
    """The files of a Hugging Face folder ``hf`` and of the Megatron checkpoint ``mg`` that was made of it."""
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    rows = entries(weight_map(read_shape(folder)), "local")
    named = {
        n: (n, "bfloat16", s) for entry in rows for n, s in zip(entry.hf_names, entry.layout.hf_shapes, strict=True)
    }
    header, places = plan_file([*named.values()])
    with (folder / "model.safetensors").open("wb") as out:
        out.write(header)
        out.truncate(places[-1].offset + places[-1].nbytes)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(named, "model.safetensors")}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(SystemExit) as end:
        main(["checkpoint", "convert", str(folder), str(tmp_path / "mg"), "--workers", "1"])
    assert end.value.code in (0, None)
    return {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


@st.composite
def damage(draw: Any, files: dict[str, bytes]) -> dict[str, bytes]:
    name = draw(st.sampled_from(sorted(files)))
    return {**files, name: _changed(draw, name, files[name])}


def _changed(draw: Any, name: str, content: bytes) -> bytes:
    if not draw(st.integers(0, 2)):
        return damaged(content, draw(EDITS))
    if name.endswith(".json"):
        return json.dumps(draw(changed_json(json.loads(content))), default=str).encode()
    if name.endswith(".safetensors"):
        (size,) = struct.unpack("<Q", content[:8])
        header = json.dumps(draw(changed_json(json.loads(content[8 : 8 + size]))), default=str).encode()
        return struct.pack("<Q", draw(st.just(len(header)) | st.integers(0, 2**64 - 1))) + header + content[8 + size :]
    return damaged(content, draw(EDITS.filter(bool)))


def test_damaged_folders(fuzzing, folders):
    def check(files: dict[str, bytes]) -> None:
        for folder in ("hf", "mg"):
            verify = ["checkpoint", "verify", folder, "--workers", "1", "--json"]
            fuzzing.run(files, ["checkpoint", "inspect", folder, "--json"], ["checkpoint", "inspect", folder])
            fuzzing.run(files, verify, allowed=(0, 1, 2))
        fuzzing.run(files, ["checkpoint", "verify", "hf", "mg", "--workers", "1"], allowed=(0, 1, 2))

    fuzzing.cases(damage(folders), check, 20)
