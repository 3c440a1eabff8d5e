"""A restored policy goes on exactly as the one that was saved, for either optimizer under every layout."""

from __future__ import annotations

import json

from layouts import LAYOUTS, MODELS, RESUMED
from ranks import run_ranks
from runfiles import write_run

from grpo_hpc.train.checkpoints import is_complete, newest, prune


def test_resumed_steps_are_equal_to_the_bit(tiny, tmp_path):
    runs = []
    for case in (LAYOUTS[name] for name in RESUMED):
        keys = {"use_distributed_optimizer": False, "nproc_per_node": 4} | case.keys
        runs.append(write_run(tmp_path, tiny(*MODELS[case.model]), name=case.name, **keys))
    run_ranks("checkpoint", 4, tmp_path, *runs)
    for name in RESUMED:
        check_shares(written(tmp_path / name / "step_00000002" / "megatron", 4))


def written(folder, ranks):
    """Bytes of model and optimizer that each rank wrote."""
    return [sum(file.stat().st_size for file in folder.glob(f"__{rank}_*.distcp")) for rank in range(ranks)]


def check_shares(sizes):
    """What replicas hold alike they write in parts."""
    assert min(sizes) > 0.5 * sum(sizes) / len(sizes), sizes


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
