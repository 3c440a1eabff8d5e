"""Run a worker script on several ranks, with what torchrun tells each of them in a real run.

On a CPU, ranks are forked from a process that has torch and Megatron-Core loaded, which takes eight seconds.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
import traceback
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from grpo_hpc.jobs.ports import claimed_port

ROOT = Path(__file__).parents[2]
WORKERS = Path(__file__).parent / "workers"
_PORTS = range(29600, 29900)


@functools.cache
def _server() -> Any:
    """Where ranks are forked; with a GPU it loads nothing, as CUDA does not survive a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([] if torch.cuda.is_available() else ["grpo_hpc.train.loop"])
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):  # read once, when torch is loaded
        forkserver.ensure_running()
    return context


def run_ranks(worker: str, ranks: int, *args: object, timeout: float = 300) -> None:
    """Run ``workers/<worker>.py``; fails with what was printed when a rank fails."""
    paths = [str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    everywhere = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [str(WORKERS / f"{worker}.py"), *map(str, args)]
    with tempfile.TemporaryDirectory() as folder, claimed_port(_PORTS) as port:
        logs = [Path(folder) / f"rank_{rank}.log" for rank in range(ranks)]
        told = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = []
        for rank, log in enumerate(logs):
            own = {key: str(value) for key, value in (told | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            processes.append(_server().Process(target=_be_rank, args=(command, everywhere | own, log)))
            processes[-1].start()
        _await(processes, timeout)
        failed = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
        said = "\n".join(log.read_text(errors="replace")[-6000:] for log in logs if log.exists())
    assert not failed, f"{worker} on {ranks} ranks failed (exit codes {failed}):\n{said}"


def _await(processes: list[ForkServerProcess], timeout: float) -> None:
    """Until all have ended; when one fails or time is over, the others are killed."""
    deadline = time.monotonic() + timeout
    while going := [process for process in processes if process.exitcode is None]:
        wait([process.sentinel for process in going], max(0.0, deadline - time.monotonic()))
        if time.monotonic() >= deadline or any(process.exitcode for process in processes):
            for process in going:
                process.kill()
                process.join()


def _be_rank(command: list[str], environment: dict[str, str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with log.open("wb") as out:
        for standard in (1, 2):
            os.dup2(out.fileno(), standard)
    sys.argv = command
    sys.path.insert(0, str(WORKERS))
    code = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    if not torch.cuda.is_available():  # end as a program does: vLLM's shared memory is left behind otherwise
        atexit._run_exitfuncs()
        ctypes.CDLL(None).exit(code)
    sys.exit(code)
