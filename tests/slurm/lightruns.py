"""Runs on the test cluster: made, waited for, and shown when something went wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_hpc.cluster import slurm
from grpo_hpc.config import load_run
from grpo_hpc.jobs.prepare import create_run
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.attempts import Attempt, history
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.submissions import submissions

ROOT = Path(__file__).parents[2]
PAYLOAD = Path(__file__).parent / "payload.py"
SERVER = Path(__file__).parent / "server.py"
PROFILE = {
    "gres": "none",
    "cpus_per_node": 8,
    "memory": "4000M",
    "time_limit": "30:00",
    "preflight": {"enabled": False},
}
ON_SERVERS = {"rollout": {"vllm_mode": "server", "vllm_server_nodes": 2, "vllm_server_timeout": 60}}


def prepare(
    tmp_path: Path,
    name: str,
    sections: dict[str, dict[str, Any]],
    profile: dict[str, Any],
    folder: str,
    server: tuple[str, ...] = (str(SERVER),),
) -> RunDir:
    """The directory of :func:`write_run`'s run."""
    cfg = load_run(write_run(tmp_path, name, sections, profile, folder))
    return create_run(cfg, make_plan(cfg), program=(str(PAYLOAD),), server=server)


def write_run(
    tmp_path: Path, name: str, sections: dict[str, dict[str, Any]], profile: dict[str, Any], folder: str
) -> Path:
    """A run file; what ``sections`` and ``profile`` say is put over a small run on 2 nodes x 2 ranks."""
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    if not model.is_dir():
        model.mkdir()
        blob = tmp_path / "blobs" / "0"  # as in a Hugging Face cache, where a model's files are links
        blob.parent.mkdir()
        shutil.copy(next((ROOT / "configs" / "models").glob("Qwen3-0.6B*")), blob)
        (model / "config.json").symlink_to("../blobs/0")
    rows.write_text("{}\n")
    profile_file = tmp_path / f"{name}-profile.yaml"
    profile_file.write_text(yaml.safe_dump({"python": sys.executable, **PROFILE, **profile}))
    values: dict[str, Any] = {
        "name": name,
        "output_dir": str(tmp_path / folder),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(rows)},
        "resources": {"device": "cpu", "nodes": 2, "nproc_per_node": 2},
        "batch": {"global_batch_size": 32, "train_iters": 500},
        "rewards": {"reward_funcs": ["exact_number"]},
        "cluster": {"profile": str(profile_file)},
    }
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    run_file = tmp_path / f"{name}.yaml"
    run_file.write_text(yaml.safe_dump(values))
    return run_file


def contained(runtime: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Keys of a profile for a run in ``runtime``: this machine's own Python fits an image of the same release."""
    if runtime == "none":
        return {}
    venv = os.path.realpath(ROOT / ".venv")
    home = os.path.realpath(f"{venv}/bin/python").removesuffix("/bin/python3.11")
    binds = [venv, str(ROOT), *([home] if home != "/usr" else [])]
    image = request.getfixturevalue(f"{runtime}_image")
    return {"runtime": runtime, "image": image, "binds": binds, "environment": {"PYTHONPATH": str(ROOT)}}


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120, pause: float = 0.3) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}\n{slurm.call(['squeue'])}"
        time.sleep(pause)


def empty_queue() -> None:
    """Cancel whatever waits or runs."""
    subprocess.run("squeue -h -o %A | sort -u | xargs -r scancel", shell=True, check=True)
    wait_for(lambda: not slurm.call(["squeue", "-h"]), "the queue is empty", 60)


def ended(run: RunDir, attempts: int, seconds: float = 120) -> list[Attempt]:
    """The records of ``attempts`` starts, all of them ended."""

    def all_ended() -> bool:
        records = history(run)
        return len(records) >= attempts and all(record.state != "running" for record in records[:attempts])

    try:
        wait_for(all_ended, f"{attempts} attempts of {run.path}", seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{everything(run)}") from None
    return history(run)


def everything(run: RunDir) -> str:
    """All logs of a run, for the reader of a failed test."""
    logs = sorted(
        [*run.path.glob("*.log"), *run.path.glob("attempt_*/*.log"), *run.path.glob("attempt_*/attempt.json")]
    )
    return "\n".join(f"=== {log}\n{log.read_text(errors='replace')[-2500:]}" for log in logs)


def job(run: RunDir) -> str:
    return submissions(run)[-1].job_ids[-1]
