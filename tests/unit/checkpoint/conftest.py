from __future__ import annotations

import pytest

from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.naming import Parallel
from grpo_hpc.checkpoint.run import Work, build
from grpo_hpc.checkpoint.to_megatron import plan_to_megatron


@pytest.fixture
def model(tmp_path, tiny_model):
    """A Hugging Face folder with random weights."""
    return tiny_model(tmp_path / "model")


@pytest.fixture
def megatron(model, tmp_path):
    """The same as a Megatron checkpoint."""
    build(plan_to_megatron(open_folder(model), Parallel(tp=2)), tmp_path / "megatron", Work())
    return tmp_path / "megatron"
