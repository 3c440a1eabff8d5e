"""The check of one node, from inside the container: what can be seen without waiting for the other nodes.

:mod:`grpo_hpc.jobs.checks.check_rank` comes after it; what follows from the report is decided by
:mod:`grpo_hpc.jobs.checks.node_reports`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from grpo_hpc.config import RunConfig
from grpo_hpc.errors import CheckpointError, GrpoHpcError
from grpo_hpc.files import write_atomically
from grpo_hpc.jobs.checks.node_reports import report_path, this_node
from grpo_hpc.models.on_disk.model_folder import weight_files
from grpo_hpc.rollout.engine_arguments import unknown_arguments
from grpo_hpc.rollout.environments.environment_pool import start_environments
from grpo_hpc.runs.attempts import named_checkpoints
from grpo_hpc.runs.run_dir import RunDir

_GIB = 2**30


def main(run_dir: RunDir) -> int:
    """Write this node's report; 1 when something is wrong, which ends the step on every node."""
    report = look(run_dir.config(), run_dir)
    path = report_path(run_dir.latest_attempt(), this_node())
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(report))
    return int(bool(report["problems"]))


def look(cfg: RunConfig, run_dir: RunDir) -> dict[str, Any]:
    """What this node has: problems in words, and free space in GiB."""
    folders = dict.fromkeys([str(run_dir.path), os.environ.get("TMPDIR", "/tmp")])
    free = {folder: shutil.disk_usage(folder).free / _GIB for folder in folders if Path(folder).is_dir()}
    problems = [f"{folder} is no folder here" for folder in folders if folder not in free]
    problems += _unread(cfg, run_dir)
    problems += _gpu_problems(cfg)
    problems += _name_problems()
    problems += filter(None, [unknown_arguments(cfg.rollout.vllm_engine_kwargs)])
    problems += environment_problems(cfg)
    return {"free_gib": free, "problems": problems, "host": socket.gethostname()}


def _unread(cfg: RunConfig, run_dir: RunDir) -> list[str]:
    try:
        return [f"{path} cannot be read" for path in _read_paths(cfg, run_dir) if not os.access(path, os.R_OK)]
    except CheckpointError as error:  # the index of the model
        return [error.message]


def _read_paths(cfg: RunConfig, run_dir: RunDir) -> list[str]:
    """What training begins with: the model, the rows, and the newest checkpoint, file by file."""
    model = [cfg.model.path, f"{cfg.model.path}/config.json", *map(str, weight_files(Path(cfg.model.path)))]
    rows = [path for path in (cfg.data.train, cfg.data.eval) if path]
    newest = named_checkpoints(run_dir)[:1]  # what is missing in it is for the trainer to find, not for one blind node
    saved = [path for folder in newest for path in (folder, *folder.rglob("*"))]
    return [*model, *rows, *map(str, saved)]


def _gpu_problems(cfg: RunConfig) -> list[str]:
    if cfg.resources.device != "cuda":
        return []
    import torch

    seen, needed = torch.cuda.device_count(), cfg.resources.nproc_per_node
    if seen >= needed:
        return []
    driver = Path("/proc/driver/nvidia/version").exists()
    why = "" if driver else "; the NVIDIA driver is not visible"
    return [f"{seen} of {needed} GPUs are visible{why}"]


def environment_problems(cfg: RunConfig) -> list[str]:
    """Whether the environment's file can be imported here, with what it imports itself."""
    try:
        pool = start_environments(cfg, Path(os.devnull))
    except GrpoHpcError as error:
        return [" ".join(filter(None, (error.message, error.hint)))]
    if pool:
        pool.close()
    return []


def _name_problems() -> list[str]:
    master = os.environ["MASTER_ADDR"]
    try:
        socket.getaddrinfo(master, None)
    except OSError as error:
        return [f"the name {master} does not resolve: {error.strerror}"]
    return []


if __name__ == "__main__":
    sys.exit(main(RunDir.open(sys.argv[1])))
