"""A restored policy goes on exactly as the one that was saved, for either optimizer under every layout."""

from __future__ import annotations

import json

import pytest
from ranks import run_ranks
from runfiles import write_run

from grpo_hpc.train.checkpoint import is_complete, newest, prune


@pytest.mark.parametrize("layout", ["data", "tensor_model_parallel_size", "pipeline_model_parallel_size"])
def test_resumed_steps_are_equal_to_the_bit(layout, tiny, tmp_path):
    ranks = {"nproc_per_node": 2} | ({} if layout == "data" else {layout: 2})
    runs = [
        write_run(tmp_path, tiny("llama"), name=f"run{choice}", use_distributed_optimizer=choice, **ranks)
        for choice in (False, True)
    ]
    run_ranks("checkpoint", 2, tmp_path, *runs)


def fake_checkpoint(folder, step, files=("state.json",)):
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text("{}")
    (path / "manifest.json").write_text(json.dumps({"step": step, "files": dict.fromkeys(files, 2)}))
    return path


def test_only_complete_checkpoints_count(tmp_path):
    assert newest(tmp_path / "none") is None
    complete, broken, cut = (fake_checkpoint(tmp_path, step) for step in (2, 4, 10))
    (broken / "manifest.json").unlink()
    (cut / "state.json").write_text("{")
    (tmp_path / "step_00000012.tmp").mkdir()
    assert newest(tmp_path) == complete and not is_complete(broken) and not is_complete(cut)


def test_prune_keeps_the_newest_and_clears_unfinished_saves(tmp_path):
    for step in (2, 4, 10):
        fake_checkpoint(tmp_path, step)
    (tmp_path / "step_00000012.tmp").mkdir()
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000004", "step_00000010"]
