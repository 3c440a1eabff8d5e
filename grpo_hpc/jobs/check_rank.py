"""The check of a node, from inside the container, before a model is loaded: every rank of the run, under torchrun.

The first rank of each node looks at its node and writes what it found; then all ranks reduce a tensor together. What
follows from the reports is decided by :mod:`grpo_hpc.jobs.nodes`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_hpc.config import RunConfig
from grpo_hpc.jobs.attempts import saved_step
from grpo_hpc.jobs.nodes import report_path
from grpo_hpc.jobs.run_dir import RunDir

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

_GIB = 2**30
_MIB_REDUCED = {"cuda": 256, "cpu": 8}
_ROUNDS = 5
_PATIENCE_S = 60


def main(run_dir: RunDir) -> int:
    """Check this rank's node and the network; always 0 when it could be done, findings are in the reports."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    attempt = run_dir.latest_attempt()
    first_here = os.environ["LOCAL_RANK"] == "0"
    report: dict[str, Any] = {}
    path = report_path(attempt, node)
    if first_here:
        report = look(run_dir.config(), run_dir)
        path.parent.mkdir(exist_ok=True)
        _write(path, report)
    speeds = _all_reduce(run_dir.config().resources.device)
    if first_here:
        report["problems"] += _canaries(path.parent)
        _write(path, report | {"joined": True, **speeds})
    return 0


def look(cfg: RunConfig, run_dir: RunDir) -> dict[str, Any]:
    """What this node has: problems in words, and free space in GiB."""
    folders = dict.fromkeys([str(run_dir.path), os.environ.get("TMPDIR", "/tmp")])
    free = {folder: shutil.disk_usage(folder).free / _GIB for folder in folders if Path(folder).is_dir()}
    problems = [f"{folder} is no folder here" for folder in folders if folder not in free]
    problems += [f"{path} cannot be read" for path in _read_paths(cfg, run_dir) if not os.access(path, os.R_OK)]
    problems += _gpu_problems(cfg)
    problems += _name_problems()
    return {"free_gib": free, "problems": problems, "host": socket.gethostname()}


def _read_paths(cfg: RunConfig, run_dir: RunDir) -> list[str]:
    """What training begins with: the model, the rows, and the newest checkpoint, file by file."""
    model = [cfg.model.path, f"{cfg.model.path}/config.json", *map(str, Path(cfg.model.path).glob("*.safetensors"))]
    rows = [path for path in (cfg.data.train, cfg.data.eval) if path]
    step = saved_step(run_dir)
    newest = [run_dir.checkpoints / f"step_{step:06d}"] if step else []
    return [*model, *rows, *(str(path) for folder in newest for path in (folder, *folder.rglob("*")))]


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


def _name_problems() -> list[str]:
    master = os.environ["MASTER_ADDR"]
    try:
        socket.getaddrinfo(master, None)
    except OSError as error:
        return [f"the name {master} does not resolve: {error.strerror}"]
    return []


def _canaries(folder: Path) -> list[str]:
    """Does this node see what the others wrote? Called after all ranks have met, so every report has been written."""
    expected = int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    deadline = time.monotonic() + 10  # NFS shows a new file late
    while (seen := len(list(folder.glob("*.json")))) < expected:
        if time.monotonic() > deadline:
            return [f"{folder} is not shared: {seen} of {expected} nodes' files are seen here"]
        time.sleep(0.2)
    return []


def _all_reduce(device: str) -> dict[str, float]:
    """Bandwidth in GB/s of an all-reduce over all ranks, and of one over the ranks of this node.

    And the clock, in seconds since the epoch, read when all ranks have just met: nodes start at different times.
    """
    import torch
    import torch.distributed as dist

    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=_PATIENCE_S))
    values = torch.ones(_MIB_REDUCED[device] * 2**20 // 4, device=device)
    here, _ = dist.new_subgroups(int(os.environ["LOCAL_WORLD_SIZE"]))
    speeds = {"bandwidth_gbps": _bandwidth(values, dist.group.WORLD)}
    dist.barrier()
    speeds["clock"] = time.time()
    speeds["local_gbps"] = _bandwidth(values, here)
    dist.destroy_process_group()
    return speeds


def _bandwidth(values: torch.Tensor, group: dist.ProcessGroup | None) -> float:
    """Bus bandwidth in GB/s: bytes * 2 (n - 1) / n / seconds, as nccl-tests has it; 0 for one rank."""
    import torch
    import torch.distributed as dist

    dist.all_reduce(values, group=group)  # connections are made at the first use
    dist.barrier()
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        dist.all_reduce(values, group=group)
    if values.is_cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / _ROUNDS
    ranks = dist.get_world_size(group)
    return values.nbytes * 2 * (ranks - 1) / ranks / seconds / 1e9


def _write(path: Path, report: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report))
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main(RunDir.open(sys.argv[1])))
