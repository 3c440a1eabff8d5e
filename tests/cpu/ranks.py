"""Run a worker script on several ranks, as torchrun does in a real run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKERS = Path(__file__).parent / "workers"


def run_ranks(worker: str, ranks: int, *args: object, timeout: float = 300) -> None:
    """Run ``workers/<worker>.py`` under torchrun; fails with its output when a rank fails."""
    paths = [str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as logs:  # torchrun would leave one of its own behind
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--log-dir", logs]
        command += [f"--nproc-per-node={ranks}", str(WORKERS / f"{worker}.py"), *map(str, args)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{worker} on {ranks} ranks failed:\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
