"""A Slurm cluster on this machine, raised for the session, and runs that are submitted to it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightruns import prepare, wait_for

from grpo_hpc.jobs import slurm
from grpo_hpc.jobs.executors import queue
from grpo_hpc.jobs.prepare import stored_profile
from grpo_hpc.jobs.run_dir import RunDir

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "slurm"


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """Four nodes; the commands of this process and of its children talk to it."""
    subprocess.run([TOOLS / "install.sh"], check=True)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:
        state = Path(folder) / "s"
        changed = {"SLURM_CONF": str(state / "slurm.conf"), "PYTHONPATH": str(ROOT)}
        before = {name: os.environ.get(name) for name in changed}
        try:
            subprocess.run([TOOLS / "cluster.sh", "up", state], check=True, stdout=subprocess.DEVNULL)
            os.environ.update(changed)
            yield
        finally:
            subprocess.run([TOOLS / "cluster.sh", "down", state], check=True)
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture(autouse=True)
def leave_no_jobs() -> Iterator[None]:
    """A failed test must not disturb the next one."""
    yield
    subprocess.run("squeue -h -o %A | sort -u | xargs -r scancel", shell=True, check=True)
    wait_for(lambda: not slurm.call(["squeue", "-h"]), "the queue is empty", 60)


Submit = Callable[..., RunDir]


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """``submit(steps=3, profile={...}, run={...})``: a run of the payload, 2 nodes x 2 ranks, put into the queue."""

    def make(
        name: str = "light",
        profile: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        start: bool = True,
        folder: str = "runs",
        **payload: Any,
    ) -> RunDir:
        run_dir = prepare(tmp_path, name, profile or {}, run or {}, folder)
        (run_dir.path / "payload.json").write_text(json.dumps({"steps": 3, "pause": 0.05, **payload}))
        if start:
            queue(run_dir, stored_profile(run_dir))
        return run_dir

    return make
