"""What completions take on their way from sampling to training: before and after samples travelled once, in one run.

    python tools/bench_exchange.py [--ranks 4] [--completions 4096] [--tokens 2048] [--json FILE]

Ranks are processes of this machine that talk over gloo; completions are made up, their lengths spread threefold.
*Before* is how it was done up to November 2026: a record of Python lists for each completion, all of them gathered on
every rank. *After* is the package's own code: summaries on every rank, payloads to the rank that trains them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def resident() -> int:
    """Bytes of this process in memory, without what is free in it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def before(options: argparse.Namespace, rank: int) -> dict[str, float]:
    """Every rank's records on every rank, pickled."""
    import torch.distributed as dist

    rng = random.Random(rank)
    mine = [
        {
            "prompt_tokens": [rng.randrange(100_000) for _ in range(tokens // 4)],
            "response_tokens": [rng.randrange(100_000) for _ in range(tokens - tokens // 4)],
            "rollout_logprobs": [-rng.random() for _ in range(tokens - tokens // 4)],
            "key": (rank, number),
        }
        for number, tokens in enumerate(lengths(options, rank))
    ]
    size, held = resident(), sum(lengths(options, rank))
    dist.barrier()
    started = time.perf_counter()
    parts: list[Any] = [None] * options.ranks
    dist.all_gather_object(parts, mine)
    seconds = time.perf_counter() - started
    everything = sum(sum(lengths(options, other)) for other in range(options.ranks))
    grown = resident() - size
    return {
        "seconds": seconds,
        "bytes_per_token_held": grown / everything,
        "tokens_held": float(everything),
        "bytes_resident": grown + grown * held / everything,
    }


def after(options: argparse.Namespace, rank: int) -> dict[str, float]:
    """Summaries to every rank, each payload to the rank that trains it."""
    import numpy as np
    import torch.distributed as dist

    from grpo_hpc.control import Control
    from grpo_hpc.rollout.exchange import Exchange, payload_bytes
    from grpo_hpc.rollout.sample import Key, Sample, in_order, summaries

    control = Control(timedelta(minutes=5))
    exchange, rng = Exchange(control, rank), np.random.default_rng(rank)

    def one(number: int, tokens: int) -> Sample:
        prompt, response = np.split(rng.integers(0, 100_000, tokens, dtype=np.int32), [tokens // 4])
        logprobs = -rng.random(len(response), dtype=np.float32)
        return Sample.single_turn(Key(number, rank), prompt, response, logprobs, 0, "stop")

    def dealt(to: np.ndarray) -> list[list[np.ndarray]]:
        return [[np.flatnonzero(to == other)] for other in range(options.ranks)]

    def summarised(held: dict[Key, Sample]) -> np.ndarray:
        return in_order(control.gather_rows(summaries(list(held.values()), rank, 1), "summaries"))

    first = {Key(0, rank): one(0, 8)}  # connections and buffers are made at their first use
    table = summarised(first)
    exchange.deliver(first, table, [dealt((table["owner"] + 1) % options.ranks)])
    start, moved_before = resident(), exchange.moved
    held = {s.key: s for s in (one(*made) for made in enumerate(lengths(options, rank)))}
    own = resident() - start
    times = []
    for _ in range(5):
        dist.barrier()
        started = time.perf_counter()
        table = summarised(held)
        times.append(time.perf_counter() - started)
    to = np.random.default_rng(1).integers(0, options.ranks, len(table))
    dist.barrier()
    started = time.perf_counter()
    got = exchange.deliver(held, table, [dealt(to)])
    delivered = time.perf_counter() - started
    changed = int(payload_bytes(table[to != table["owner"]]).sum())
    moved = sum(control.gather(exchange.moved - moved_before, "bytes"))
    tokens = sum(lengths(options, rank))
    del held
    trained = sum(len(s.tokens) for s in got.values())
    return {
        "seconds": min(times) + delivered,
        "gather_of_summaries_ms": 1e3 * min(times),
        "bytes_per_token_sampled": own / tokens,
        "bytes_per_token_held": (resident() - start) / trained,
        "tokens_held": float(trained),
        "bytes_resident": float(resident() - start),
        "bytes_of_a_summary": float(table.itemsize),
        "moved_over_changed": moved / changed,
    }


def lengths(options: argparse.Namespace, rank: int) -> list[int]:
    rng = random.Random(100 + rank)
    return [int(options.tokens * rng.uniform(0.5, 1.5)) for _ in range(options.completions // options.ranks)]


def be_rank(rank: int, options: argparse.Namespace, port: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    dist.init_process_group("gloo", rank=rank, world_size=options.ranks)
    found = {}
    for name, way in (("after", after), ("before", before)):
        found[name] = way(options, rank)
    parts: list[Any] = [None] * options.ranks
    dist.all_gather_object(parts, found)
    if rank == 0:
        most = {way: {k: max(p[way][k] for p in parts) for k in parts[0][way]} for way in parts[0]}
        (Path(folder) / "found.json").write_text(json.dumps(most))
    dist.destroy_process_group()


def main() -> int:
    import tempfile

    import torch.multiprocessing as processes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--completions", type=int, default=4096, help="of all ranks together")
    parser.add_argument("--tokens", type=int, default=2048, help="of a completion and its prompt, on average")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(be_rank, (options, port, folder), nprocs=options.ranks)
        found = json.loads((Path(folder) / "found.json").read_text())
    show(options, found)
    if options.json:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"json": None}, "found": found}, indent=1) + "\n"
        )
    return 0


def show(options: argparse.Namespace, found: dict[str, dict[str, float]]) -> None:
    print(
        f"{options.ranks} ranks, {options.completions} completions of {options.tokens} tokens; each row its worst rank"
    )
    print(f"{'':34}{'before':>12}{'after':>12}{'ratio':>8}")
    for name in ("seconds", "bytes_per_token_held", "tokens_held", "bytes_resident"):
        old, new = found["before"][name], found["after"][name]
        print(f"{name.replace('_', ' '):34}{old:12.4g}{new:12.4g}{old / new:8.1f}")
    for name in sorted(found["after"].keys() - found["before"].keys()):
        print(f"{name.replace('_', ' '):46}{found['after'][name]:12.4g}")


if __name__ == "__main__":
    sys.exit(main())
