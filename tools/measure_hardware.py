"""Measure this machine's GPU and write a hardware profile for the planner.

    python tools/measure_hardware.py my.yaml --like h100
    torchrun --standalone --nproc-per-node 8 tools/measure_hardware.py my.yaml --like h100    # links, too

What cannot be measured here (network, disk, data-sheet rate) is taken from the profile named by ``--like``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml

from grpo_hpc.errors import EXIT_USER_ERROR
from grpo_hpc.plan.hardware import profile_names, read_hardware

SIZE = 8192


def main() -> int:
    """Measure and write; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--like", choices=profile_names(), default="h100", help="profile that gives what is not measured"
    )
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("there is no CUDA device on this machine", file=sys.stderr)
        return EXIT_USER_ERROR
    like = read_hardware(options.like)
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    found = measure(like.bf16_tflops)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        found["nvlink_gb_per_s"] = link()
    if int(os.environ.get("RANK", "0")) == 0:
        found["name"] = torch.cuda.get_device_name()
        found["source"] = f"measured on this machine by tools/measure_hardware.py; the rest from {options.like}"
        options.file.write_text(yaml.safe_dump(dataclasses.asdict(like) | found, sort_keys=False))
        print(f"wrote {options.file}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    return 0


def measure(tflops: float) -> dict[str, Any]:
    """Memory, matrix rate, copy rates and launch time of the current device."""
    import torch

    a = torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16)
    product = seconds(lambda: a @ a)
    big = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    copy = seconds(lambda: big.clone())
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    pcie = seconds(lambda: host.to("cuda", non_blocking=True))
    one = torch.zeros(1, device="cuda")
    launch = seconds(lambda: [one.add_(1) for _ in range(1000)])
    reached = 2 * SIZE**3 / product / 1e12
    return {
        "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1),
        "matmul_efficiency": round(0.75 * min(1.0, reached / tflops), 3),  # layers reach three quarters of one product
        "hbm_gb_per_s": round(2 * big.numel() / copy / 1e9),
        "pcie_gb_per_s": round(host.numel() / pcie / 1e9, 1),
        "launch_us": round(launch * 1e3, 2),
    }


def link() -> float:
    """Bandwidth of an all-gather per GPU and direction, in GB/s."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("nccl")
    ranks = dist.get_world_size()
    part = torch.empty(2**28 // ranks, device="cuda", dtype=torch.uint8)
    whole = torch.empty(part.numel() * ranks, device="cuda", dtype=torch.uint8)
    spent = seconds(lambda: dist.all_gather_into_tensor(whole, part))
    dist.destroy_process_group()
    return round(whole.numel() * (ranks - 1) / ranks / spent / 1e9, 1)


def seconds(action: Callable[[], object], repeats: int = 10) -> float:
    """Best of ``repeats`` after a warm-up."""
    import torch

    best = float("inf")
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        action()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    raise SystemExit(main())
