"""The check of the network, from inside the container, before a model is loaded: every rank of the run, under torchrun.

All ranks reduce a tensor together, after :mod:`grpo_hpc.jobs.checks.check_node` has looked at each node.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_hpc.files import write_atomically
from grpo_hpc.jobs.checks.node_reports import report_path, this_node
from grpo_hpc.runs.run_dir import RunDir

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

_MIB_REDUCED = {"cuda": 256, "cpu": 8}
_ROUNDS = 5
_PATIENCE_S = 60


def main(run_dir: RunDir) -> int:
    """Check the network between all ranks; findings go into the report of each node."""
    path = report_path(run_dir.latest_attempt(), this_node())
    _note(path, {"arrived": True})
    speeds = _all_reduce(run_dir.config().resources.device)
    _note(path, {"joined": True, **speeds}, lambda: _canaries(path.parent))
    return 0


def _note(path: Path, found: dict[str, Any], look: Callable[[], list[str]] = list) -> None:
    """Add what was found, and the problems that ``look`` finds, to the report of this node; its first rank does."""
    if os.environ["LOCAL_RANK"] == "0":
        report = json.loads(path.read_text())
        write_atomically(path, json.dumps(report | found | {"problems": [*report["problems"], *look()]}))


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


if __name__ == "__main__":
    sys.exit(main(RunDir.open(sys.argv[1])))
