"""One layout after another in the same processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from grpo_hpc.config import RunConfig, load_run
from grpo_hpc.control import Control
from grpo_hpc.rollout.engine import Request, sampling
from grpo_hpc.train.megatron.platform import Platform, make_platform


def each_layout(files: Sequence[str]) -> Iterator[tuple[RunConfig, Platform]]:
    """Every run file with Megatron's groups for it; at the end the ranks wait for each other.

    On a CPU layouts share the process groups of equal ranks: each of Gloo's groups has threads of its own that stay,
    and with them thirty layouts took four times as long.
    """
    from megatron.core import parallel_state as mpu

    from grpo_hpc.train.megatron.parallel import init_model_parallel

    runs = [load_run(file) for file in files]
    if runs[0].resources.device == "cuda" and torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        _share_one_gpu()
    platform = make_platform(runs[0].resources.device)
    platform.init_distributed()
    if not platform.is_cuda:
        torch.distributed.new_group = _made_once(dist.new_group)
    for cfg in runs:
        mpu.destroy_model_parallel()
        init_model_parallel(cfg, platform)
        yield cfg, platform
    dist.barrier()


def control() -> Control:
    """Of all ranks, with a limit that shows where a test hangs."""
    return Control(timedelta(minutes=4))


def requests_for(cfg: RunConfig, prompts: Sequence[Sequence[int]], *, greedy: bool = False) -> list[Request]:
    """One completion of each of ``prompts``, as a rollout would ask for it."""
    options = sampling(cfg.rollout, greedy)
    return [Request(np.array(prompt), seed, options) for seed, prompt in enumerate(prompts)]


def _share_one_gpu() -> None:
    """Let all ranks use the first GPU. NCCL refuses two ranks on one GPU of a host, so each claims a host of its own.

    What they exchange goes through sockets, and they take turns on the GPU: slow, and right.
    """
    os.environ |= {
        "LOCAL_RANK": "0",
        "NCCL_HOSTID": f"host-of-rank-{os.environ['RANK']}",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_IB_DISABLE": "1",
    }


def _made_once(new_group: Callable[..., Any]) -> Callable[..., Any]:
    made: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(new_group)
    def group(ranks: Sequence[int] | None = None, timeout: Any = None, backend: Any = None, **options: Any) -> Any:
        key = (None if ranks is None else tuple(ranks), backend, timeout)  # Megatron destroys its own
        if key not in made:
            made[key] = new_group(ranks, timeout, backend, **options)
        return made[key]

    return group
