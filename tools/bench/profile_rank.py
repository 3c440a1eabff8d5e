"""One rank of tools/profile_step.py, under torchrun: RUN.yaml FOUND.json [KEY=VALUE ...]."""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import sys
import tempfile
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any


def main(run: str, found: Path, keys: list[str]) -> None:
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state as mpu
    from torch.profiler import ProfilerActivity, profile

    from grpo_hpc.config import load_run
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.control import Control
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.experience import Experience
    from grpo_hpc.train.megatron.parallel import init_model_parallel, packing_of
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    cfg = load_run(run, keys)
    plan, platform = schedule(cfg), make_platform(cfg.resources.device)
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    policy, packing = TrainedPolicy(cfg, platform, Control(timedelta(minutes=30))), packing_of(cfg)
    experience = Experience(*random_completions(cfg, plan.global_batch_size))
    set_token_weights(cfg, plan, experience.table)

    def step() -> dict[str, float]:
        dist.barrier()
        platform.synchronize()
        began = time.perf_counter()
        mine = packing.deal(experience.table, plan.dp)[mpu.get_data_parallel_rank()]
        batches = [experience.pack(rows, platform.device, packing.layout) for rows in mine]
        packed = time.perf_counter()
        policy.update(batches)
        platform.synchronize()
        return {"pack": packed - began, "update": time.perf_counter() - packed}

    result: dict[str, Any] = {"steps": [step() for _ in range(cfg.batch.train_iters)]}
    host = cProfile.Profile()
    host.runcall(step)
    said = io.StringIO()
    pstats.Stats(host, stream=said).sort_stats("tottime").print_stats(25)
    result["host"] = said.getvalue()
    if platform.is_cuda:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            seen.export_chrome_trace(str(trace))
            result["gpu"] = busy(json.loads(trace.read_text())["traceEvents"])
    if dist.get_rank() == 0:
        found.write_text(json.dumps(result))
    dist.barrier()
    if torch.distributed.is_initialized():
        dist.destroy_process_group()


def random_completions(cfg: Any, count: int) -> tuple[Any, list[Any], dict[Any, Any]]:
    """Summaries, steps and samples of completions of full length, the same on every rank."""
    import numpy as np

    from grpo_hpc.rollout.sample import Key, Sample, summaries

    rng = np.random.default_rng(0)
    completion = cfg.rollout.max_completion_length
    prompt = cfg.rollout.vllm_max_model_len - completion
    words = json.loads((Path(cfg.model.path) / "config.json").read_text())["vocab_size"]

    def one(number: int) -> Sample:
        tokens, logprobs = rng.integers(2, words, prompt + completion), np.full(completion, -8.0)
        key = Key(number // 8, number % 8)
        return Sample.single_turn(key, tokens[:prompt], tokens[prompt:], logprobs, 0, "length")

    samples = [one(number) for number in range(count)]
    table = summaries(samples, 0)
    table["advantage"] = rng.uniform(-1, 1, count)
    return table, [], {sample.key: sample for sample in samples}


def busy(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds that something ran on the GPU, gaps between, and what ran longest, from a profiler's events."""
    work = [e for e in events if e.get("ph") == "X" and e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    work.sort(key=lambda e: e["ts"])
    total, until = 0.0, work[0]["ts"]
    gaps = []
    longest: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in work:
        end = event["ts"] + event["dur"]
        if event["ts"] > until:
            gaps.append(event["ts"] - until)
        total += max(0.0, end - max(until, event["ts"]))
        until = max(until, end)
        longest[event["name"][:80]][0] += event["dur"] / 1e6
        longest[event["name"][:80]][1] += 1
    ranked = sorted(longest.items(), key=lambda item: -item[1][0])[:20]
    return {
        "span": (until - work[0]["ts"]) / 1e6,
        "busy": total / 1e6,
        "kernels": len(work),
        "long_gaps": sum(gap for gap in gaps if gap > 1000) / 1e6,
        "short_gaps": sum(gap for gap in gaps if gap <= 1000) / 1e6,
        "longest": [(name, seconds, int(count)) for name, (seconds, count) in ranked],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
