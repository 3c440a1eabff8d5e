from __future__ import annotations

import json
import random

import pytest

from grpo_hpc.checkpoint.folders import open_folder
from grpo_hpc.checkpoint.naming import Parallel
from grpo_hpc.checkpoint.run import Work, build
from grpo_hpc.checkpoint.to_megatron import plan_to_megatron

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.fixture
def model(tmp_path, zero_weights):
    """A Hugging Face folder with random weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weights = zero_weights(folder)
    begin = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    with weights.open("r+b") as file:
        file.seek(begin)
        file.write(random.Random(0).randbytes(weights.stat().st_size - begin))
    return folder


@pytest.fixture
def megatron(model, tmp_path):
    """The same as a Megatron checkpoint."""
    build(plan_to_megatron(open_folder(model), Parallel(tp=2)), tmp_path / "megatron", Work())
    return tmp_path / "megatron"
