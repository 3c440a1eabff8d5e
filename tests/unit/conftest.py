from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from grpo_hpc.cli import main
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.on_disk.safetensors_file import plan_file
from grpo_hpc.models.weight_map import entries

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}

Described = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


@pytest.fixture
def cli() -> Callable[..., int]:
    """The command line; gives its exit code."""

    def call(*args: object) -> int:
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        return int(str(caught.value.code))

    return call


@pytest.fixture
def zero_weights() -> Callable[..., Path]:
    """``zero_weights(folder, left_out, more)``: weights for the config.json of a folder, as holes that take no room."""

    def write(folder: Path, left_out: Sequence[str] = (), more: Sequence[Described] = ()) -> Path:
        tensors = {
            name: (name, "bfloat16", size)
            for entry in entries(weight_map(read_shape(folder)), "local")
            for name, size in zip(entry.hf_names, entry.layout.hf_shapes, strict=True)
            if name not in left_out
        }
        header, places = plan_file([*(tensors | {one[0]: one for one in more}).values()])
        with (folder / "model.safetensors").open("wb") as out:
            out.write(header)
            out.truncate(places[-1].offset + places[-1].nbytes)
        return folder / "model.safetensors"

    return write


@pytest.fixture
def tiny_model(zero_weights: Callable[..., Path]) -> Callable[[Path], Path]:
    """``tiny_model(folder)``: a Hugging Face folder of 25 kB with random weights."""

    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        weights = zero_weights(folder)
        begin = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
        with weights.open("r+b") as file:
            file.seek(begin)
            file.write(random.Random(0).randbytes(weights.stat().st_size - begin))
        return folder

    return write
