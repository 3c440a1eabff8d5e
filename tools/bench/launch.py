"""Start a worker of a benchmark on every rank of a setting, and read what the first one found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from grpo_hpc.jobs.job_script import GPU_RANK_THREADS
from tools.bench.random_model import save_prompts
from tools.bench.settings import Setting, run_file, vocabulary

ROOT = Path(__file__).parents[2]


def on_ranks(worker: str, name: str, setting: Setting, folder: Path, device: str, keys: list[str]) -> dict[str, Any]:
    """What ``tools/bench/<worker>.py RUN.yaml FOUND.json [KEY=VALUE ...]`` wrote; its model is made first."""
    content = run_file(name, setting, folder, device)
    maker = [sys.executable, "-m", "tools.bench.random_model", content["model"]["path"], setting.shape]
    subprocess.run(maker, check=True, cwd=ROOT)
    save_prompts(Path(content["data"]["train"]), 8, setting.prompt, vocabulary(setting))
    with tempfile.TemporaryDirectory() as scratch:
        run, found = Path(scratch) / "run.yaml", Path(scratch) / "found.json"
        run.write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={setting.gpus}"]
        command += ["--log-dir", scratch, str(ROOT / "tools" / "bench" / f"{worker}.py"), str(run), str(found), *keys]
        threads = {"OMP_NUM_THREADS": str(GPU_RANK_THREADS)}  # as a job's script has it
        subprocess.run(command, check=True, cwd=ROOT, env=threads | dict(os.environ))
        return dict(json.loads(found.read_text()))
