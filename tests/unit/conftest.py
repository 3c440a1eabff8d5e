from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from grpo_hpc.cli import main
from grpo_hpc.models.families import weight_map
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.on_disk.safetensors_file import plan_file
from grpo_hpc.models.weight_map import entries

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
