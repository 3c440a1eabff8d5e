"""Samples of several owners on their way to replicas of one rank, and to one replica of all ranks."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

import numpy as np


def main() -> None:
    import torch.distributed as dist

    from grpo_hpc.control import Control
    from grpo_hpc.rollout.exchange import Exchange, payload_bytes
    from grpo_hpc.rollout.sample import in_order, keys_of, summaries

    dist.init_process_group("gloo")
    control = Control(timedelta(minutes=1))
    mine = [sample(control.rank, number) for number in range(7 * (control.rank + 1))]
    table = in_order(control.gather_rows(summaries(mine, control.rank, 1), "summaries"))
    assert len(table) == 7 * sum(range(1, control.size + 1))
    said = control.gather(table.tobytes(), "tables")
    assert len(set(said)) == 1, "every rank has the same summaries"
    held = {s.key: s for s in mine}

    for replicas in (control.size, 1):
        exchange = Exchange(control, control.rank if replicas > 1 else 0)
        rng = np.random.default_rng(3)
        to = rng.integers(0, replicas, len(table))
        # in two steps, of one micro-batch on each rank
        rows = [[[part] for part in np.array_split(np.flatnonzero(to == r), 2)] for r in range(replicas)]
        got = exchange.deliver(held, table, [[mine[0] for mine in rows], [mine[1] for mine in rows]])
        wanted = table[to == exchange.data_rank]
        assert list(got) == keys_of(wanted)
        for key, found in got.items():
            want = sample(key.position % 10, key.position // 10)
            assert all(np.array_equal(getattr(want, f.name), getattr(found, f.name)) for f in fields(want)), key
        leaders = to if replicas > 1 else np.zeros(len(table))
        changed = int(payload_bytes(table[leaders != table["owner"]]).sum())
        moved = sum(control.gather(exchange.moved, "bytes"))
        assert moved == changed, f"{moved} bytes moved, {changed} change their owner"
    assert exchange.deliver(held, table, [[[np.zeros(0, int)]]]) == {}, "nothing travels that nobody trains"


def sample(rank: int, number: int):
    """The same wherever it is made."""
    from grpo_hpc.rollout.sample import Key, Sample

    rng = np.random.default_rng(1000 * rank + number)
    prompt, response = (rng.integers(0, 1000, rng.integers(1, 40)) for _ in range(2))
    routing = rng.integers(0, 255, (len(prompt) + len(response), 8)).astype(np.uint8) if number % 2 else None
    logprobs = rng.normal(size=len(response))
    return Sample.single_turn(Key(10 * number + rank, 0), prompt, response, logprobs, number, "stop", routing)


if __name__ == "__main__":
    main()
