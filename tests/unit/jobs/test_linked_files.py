"""Binds follow links: what a container sees is put together from real links, and every path is looked up in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grpo_hpc.cluster.profile import Profile
from grpo_hpc.config import RunConfig
from grpo_hpc.jobs.job_script import render
from grpo_hpc.jobs.linked_files import links_of
from grpo_hpc.jobs.prepare import make_job


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def snapshot(folder: Path) -> Path:
    """A model as it lies in a Hugging Face cache."""
    cache = folder / "models--a--b"
    found = cache / "snapshots" / "rev"
    found.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        write(cache / "blobs" / f"blob-{name}", name)
        (found / name).symlink_to(f"../../blobs/blob-{name}")
    return found


def seen_in_container(path: str, binds: list[str], links: tuple[tuple[str, str], ...]) -> str | None:
    """What a file says that is read as ``path`` where nothing but the binds is there; None when it is not."""
    pairs = [*((bind, bind) for bind in binds), *links]
    for _ in range(40):
        inside, outside = max((p for p in pairs if Path(path).is_relative_to(p[0])), default=("", ""), key=len_of_first)
        if not inside:
            return None
        real = Path(os.path.realpath(outside)) / Path(path).relative_to(inside)
        if not real.is_symlink():
            return real.read_text() if real.is_file() else None
        path = os.path.normpath(Path(path).parent / real.readlink())
    return None


def len_of_first(pair: tuple[str, str]) -> int:
    return len(pair[0])


def test_a_snapshot_of_a_cache_brings_its_blobs(tmp_path):
    model = snapshot(tmp_path)
    blobs = str(tmp_path / "models--a--b" / "blobs")
    links = links_of([str(model)], [str(model)])
    assert links == ((blobs, blobs),)
    assert seen_in_container(f"{model}/config.json", [str(model)], links) == "config.json"
    assert seen_in_container(f"{model}/config.json", [str(model)], ()) is None


@pytest.mark.parametrize("through", ["model", "snapshots", "cache"])
def test_a_snapshot_is_found_over_a_link_to_any_folder_above_it(through, tmp_path):
    model = snapshot(tmp_path / "hub")
    above = {"model": model, "snapshots": model.parent, "cache": model.parent.parent}[through]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "link").symlink_to(above)
    path = str(tmp_path / "deep" / "er" / "link" / model.relative_to(above))
    links = links_of([path], [path])
    for name in ("config.json", "model.safetensors"):
        assert seen_in_container(f"{path}/{name}", [path], links) == name


def test_links_of_links_single_files_and_folders(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write(tmp_path / "a" / "rows", "rows")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "rows.jsonl").symlink_to("../a/rows")
    (data / "train.jsonl").symlink_to(tmp_path / "b" / "rows.jsonl")
    part = write(tmp_path / "c" / "part" / "0.arrow", "arrow")
    (data / "part").symlink_to(part.parent)
    links = links_of([str(data)], [str(data)])
    assert links == (
        (str(tmp_path / "b" / "rows.jsonl"), str(tmp_path / "b" / "rows.jsonl")),
        (str(part.parent), str(part.parent)),
    )
    assert seen_in_container(f"{data}/train.jsonl", [str(data)], links) == "rows"
    assert seen_in_container(f"{data}/part/0.arrow", [str(data)], links) == "arrow"


def test_links_that_need_nothing(tmp_path):
    write(tmp_path / "data" / "rows", "rows")
    for name, target in {"same": "rows", "round": ".", "nowhere": "/nowhere", "root": "/"}.items():
        (tmp_path / "data" / name).symlink_to(target)
    assert links_of([str(tmp_path / "data"), str(tmp_path / "absent")], [str(tmp_path / "data")]) == ()
    model = snapshot(tmp_path)
    assert links_of([str(model)], [str(tmp_path)]) == ()  # the profile binds all of it


@pytest.mark.parametrize(("runtime", "bound"), [("podman", True), ("pyxis", True), ("none", False)])
def test_binds_of_a_job_follow_links(runtime, bound, tmp_path):
    model = snapshot(tmp_path)
    step = tmp_path / "runs" / "run" / "checkpoints" / "step_5"
    step.parent.mkdir(parents=True)
    write(tmp_path / "archive" / "step_5" / "manifest.json", "{}")
    step.symlink_to(tmp_path / "archive" / "step_5")
    cfg = RunConfig(
        name="run",
        output_dir=str(tmp_path / "runs"),
        model={"path": str(model)},
        data={"train": "/data/t.jsonl"},
        batch={"train_iters": 1},
        rewards={"reward_funcs": ["exact_number"]},
    )
    profile = Profile(runtime=runtime, image=None if runtime == "none" else "image")
    text = render(make_job(cfg, profile))
    for path in (tmp_path / "models--a--b" / "blobs", tmp_path / "archive" / "step_5"):
        assert (f"source={path}" in text or f"{path}:{path}" in text) is bound
