"""Runs on the test cluster: made, waited for, and shown when something went wrong."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from grpo_hpc.config import load_run
from grpo_hpc.jobs import slurm
from grpo_hpc.jobs.attempts import Attempt, history
from grpo_hpc.jobs.prepare import create_run
from grpo_hpc.jobs.run_dir import RunDir
from grpo_hpc.jobs.submissions import submissions
from grpo_hpc.plan.make import make_plan

ROOT = Path(__file__).parents[2]
PAYLOAD = Path(__file__).parent / "payload.py"
PROFILE = {"gres": "none", "cpus_per_node": 8, "memory": "1000M", "preflight": {"enabled": False}}


def prepare(tmp_path: Path, name: str, profile: dict[str, Any], run: dict[str, Any], folder: str) -> RunDir:
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    model.mkdir(exist_ok=True)
    shutil.copy(next((ROOT / "configs" / "models").glob("Qwen3-0.6B*")), model / "config.json")
    rows.write_text("{}\n")
    profile_file = tmp_path / f"{name}-profile.yaml"
    profile_file.write_text(yaml.safe_dump({"python": sys.executable, **PROFILE, **profile}))
    values = {
        "name": name,
        "output_dir": str(tmp_path / folder),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(rows)},
        "resources": {"device": "cpu", "nodes": 2, "nproc_per_node": 2},
        "batch": {"global_batch_size": 32, "train_iters": 4},
        "rewards": {"reward_funcs": ["exact_number"]},
        "cluster": {"profile": str(profile_file), **run},
    }
    run_file = tmp_path / f"{name}.yaml"
    run_file.write_text(yaml.safe_dump(values))
    cfg = load_run(run_file)
    return create_run(cfg, make_plan(cfg), program=(str(PAYLOAD),))


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}\n{slurm.call(['squeue'])}"
        time.sleep(0.3)


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
