"""One rank of tools/bench_sync.py, under torchrun: RUN.yaml FOUND.json [KEY=VALUE ...]."""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

TIMES = 5


def main(run: str, found: Path, keys: list[str]) -> None:
    import torch
    import torch.distributed as dist

    from grpo_hpc.config import load_run
    from grpo_hpc.control import Control
    from grpo_hpc.rollout.engine import ColocateEngine
    from grpo_hpc.rollout.weights import digest
    from grpo_hpc.rollout.weights.loading import Loading
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    cfg = load_run(run, keys)
    platform = make_platform(cfg.resources.device)
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    policy = TrainedPolicy(cfg, platform, Control(timedelta(minutes=30)))
    engine: Any = ColocateEngine(cfg, platform)
    cuda = platform.is_cuda

    def seconds(work: Callable[[], object], times: int = TIMES) -> float:
        work()
        spent = []
        for _ in range(times):
            dist.barrier()
            if cuda:
                torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - started)
        slowest = torch.tensor(median(spent), device=platform.device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    def sync() -> Any:
        return engine.load_weights(policy.exporter.tensors(), 1)

    def stream() -> int:
        return sum(1 for _ in policy.exporter.tensors())

    synced, tensors = sync(), stream()
    p = cfg.parallel
    cut = p.tensor_model_parallel_size * p.pipeline_model_parallel_size
    took = {"floor": seconds(_floor(synced.bytes, cut, platform.device)), "sync": seconds(sync)}

    def first() -> Any:
        engine._loading = Loading()
        return sync()

    took["first sync"] = seconds(first)
    in_place, engine._in_place = engine._in_place, False
    took["reload"] = seconds(sync)
    engine._in_place, digest.SAMPLED = in_place, 0
    sync()
    took["unchecked"] = seconds(sync)
    took["stream alone"] = seconds(stream)
    profile = cProfile.Profile()
    profile.runcall(sync)
    if dist.get_rank() == 0:
        said = io.StringIO()
        pstats.Stats(profile, stream=said).sort_stats("tottime").print_stats(30)
        result = {"bytes": synced.bytes, "tensors": tensors, "in_place": in_place, "seconds": took}
        found.write_text(json.dumps(result | {"profile": said.getvalue()}))
    dist.barrier()
    engine.close()


def _floor(size: int, cut: int, device: Any) -> Callable[[], object]:
    """A copy of ``size`` bytes, after a gather of them where ``cut`` ranks, all of them, hold each a part."""
    import torch
    import torch.distributed as dist

    source = torch.zeros(size // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    part = source[: len(source) // cut].clone()

    def copy() -> None:
        if cut > 1:
            dist.all_gather_into_tensor(source[: len(part) * cut], part)
        target.copy_(source)

    return copy


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
