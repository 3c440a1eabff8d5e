"""A restored policy goes on exactly as the one that was saved, for either optimizer under every layout."""

from __future__ import annotations

import errno
import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from layouts import LAYOUTS, MODELS, RESUMED
from ranks import run_ranks
from runfiles import write_run

from grpo_hpc.control import Control
from grpo_hpc.digests import ALGORITHM, pieces_of
from grpo_hpc.errors import CheckpointError
from grpo_hpc.train.checkpoints import is_complete, newest_whole, prune


@pytest.fixture(scope="module")
def control():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Control(timedelta(minutes=1))
    dist.destroy_process_group()


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


def fake_checkpoint(folder, step, digests=True):
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"step": step}))
    size = (path / "state.json").stat().st_size
    pieces = [["state.json", *piece] for piece in pieces_of(path / "state.json")]
    listed = {"state.json": {"size": size, "pieces": pieces} if digests else size}
    (path / "manifest.json").write_text(json.dumps({"step": step, "digest": ALGORITHM, "files": listed}))
    return path


def change(file):
    """One bit, at the same size."""
    text = bytearray(file.read_bytes())
    text[-1] ^= 1
    file.write_bytes(text)


def test_only_whole_checkpoints_count_and_the_others_are_named(tmp_path, control):
    said = []
    assert newest_whole(tmp_path / "none", control, said.append) is None and said == []
    older, whole, broken, cut, changed = (fake_checkpoint(tmp_path, step) for step in (2, 4, 6, 10, 12))
    (broken / "manifest.json").unlink()
    (cut / "state.json").write_text("{")
    change(changed / "state.json")
    (tmp_path / "step_00000014.tmp").mkdir()
    assert is_complete(changed) and not is_complete(broken) and not is_complete(cut)
    assert newest_whole(tmp_path, control, said.append) == whole
    first, second, third = said
    assert first.startswith("the checkpoint step_00000012 is damaged and is called step_00000012.damaged now: ")
    assert first.endswith("bytes 0 to 12 of state.json are not what was written")
    assert second.endswith("state.json has 1 bytes instead of 12") and "manifest.json" in third
    assert newest_whole(tmp_path, control, said.append) == whole and len(said) == 3
    assert older.is_dir()


@pytest.mark.parametrize(
    "listed",
    [[], {"a": {}}, {"state.json": {"size": 11, "pieces": [7]}}, {"../x": 1}, {"/etc/hosts": 1}, {"a": {"size": []}}],
)
def test_a_manifest_that_is_none_is_a_damaged_checkpoint(tmp_path, control, listed):
    whole, strange = fake_checkpoint(tmp_path, 2), fake_checkpoint(tmp_path, 4)
    (strange / "manifest.json").write_text(json.dumps({"files": listed}))
    said = []
    assert newest_whole(tmp_path, control, said.append) == whole and len(said) == 1


@pytest.mark.parametrize("refused", ["manifest.json", "state.json"])
def test_what_a_machine_cannot_read_now_is_no_damage(tmp_path, control, monkeypatch, refused):
    path = fake_checkpoint(tmp_path, 4)
    real = Path.open

    def stale(file, *given, **named):
        if file.name == refused:
            raise OSError(errno.ESTALE, "Stale file handle", str(file))
        return real(file, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", stale)
        with pytest.raises(OSError, match="Stale file handle"):
            newest_whole(tmp_path, control, pytest.fail)
    assert newest_whole(tmp_path, control, pytest.fail) == path


def test_a_run_of_damaged_checkpoints_alone_does_not_begin_anew(tmp_path, control):
    for step in (2, 4):
        change(fake_checkpoint(tmp_path, step) / "state.json")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"is whole: step_00000002\.damaged, step_00000004\.damaged"):
            newest_whole(tmp_path, control, lambda _: None)


def test_older_versions_noted_sizes_alone(tmp_path, control):
    path = fake_checkpoint(tmp_path, 2, digests=False)
    assert newest_whole(tmp_path, control, pytest.fail) == path


def test_prune_keeps_the_newest_and_clears_unfinished_saves(tmp_path):
    for step in (2, 4, 10):
        fake_checkpoint(tmp_path, step)
    for name in ("step_00000012.tmp", "step_00000006.damaged", "step_00000010.damaged", "step_00000014.damaged"):
        (tmp_path / name).mkdir()
    prune(tmp_path, keep=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["step_00000004", "step_00000010", "step_00000014.damaged"]
