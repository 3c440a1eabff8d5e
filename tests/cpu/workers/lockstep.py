"""Two ranks of one engine under 200 random decisions. Arguments: run file, output folder.

Writes OUTPUT/steps_RANK.json: for every step of the engine what it scheduled, as [name, tokens computed so far] of each
running completion; and OUTPUT/ended_RANK.json: tokens by name of what ended. Python hashes differ between the ranks.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path

from onlayouts import control

DECISIONS = 200


def main() -> None:
    if "PYTHONHASHSEED" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": os.environ["RANK"]})
    from grpo_hpc.config import load_run
    from grpo_hpc.rollout.engine import ColocateEngine
    from grpo_hpc.rollout.playing import EventThread
    from grpo_hpc.rollout.replica_loop import Desk, ReplicaLoop
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    cfg, target = load_run(sys.argv[1]), Path(sys.argv[2])
    platform = make_platform(cfg.resources.device)
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    ranks = control()
    policy = TrainedPolicy(cfg, platform, ranks)
    engine = ColocateEngine(cfg, platform)
    engine.load_weights(policy.exporter.tensors(), 0)
    steps, ended = [], {}
    real = engine.step

    def step():
        scheduler = engine._vllm.engine_core.engine_core.scheduler
        found = real()
        steps.append(
            [[request.request_id.rpartition("-")[0], request.num_computed_tokens] for request in scheduler.running]
        )
        ended.update({name: completion.tokens.tolist() for name, completion in found})
        return found

    engine.step = step
    desk = None
    if ranks.first:
        events = EventThread()
        desk = Desk(events.loop)
        asking = events.start(ask(desk, cfg))
    ReplicaLoop(engine, ranks.shared_by(ranks.subgroup([[0, 1]], 0), 0)).run(desk)
    if ranks.first:
        given_up = asking.result(60)
        (target / "given_up.json").write_text(json.dumps(given_up))
    (target / f"steps_{ranks.rank}.json").write_text(json.dumps(steps))
    (target / f"ended_{ranks.rank}.json").write_text(json.dumps(ended))
    (target / f"hash_{ranks.rank}.json").write_text(json.dumps(hash("a text")))
    ranks.wait("both ranks")
    engine.close()


async def ask(desk, cfg) -> int:
    """Completions that come, wait for tools, go on and are given up at random; how many were given up."""
    import numpy as np

    from grpo_hpc.rollout.engine import Request, sampling

    rng, given_up = random.Random(), 0
    options = sampling(cfg.rollout, greedy=False)
    shared = [rng.randrange(256) for _ in range(20)]

    async def episode(number: int) -> None:
        tokens = shared[: rng.randrange(20)] + [rng.randrange(256) for _ in range(rng.randint(1, 20))]
        for turn in range(rng.randint(1, 3)):
            limited = options | {"max_tokens": rng.randint(1, 12)}
            answer = await desk.sample(Request(np.array(tokens, np.int32), 1000 * number + turn, limited))
            tokens = [*tokens, *answer.tokens.tolist()]
            await asyncio.sleep(rng.random() * 0.02)

    running = set()
    for number in range(DECISIONS):
        running.add(asyncio.ensure_future(episode(number)))
        running = {task for task in running if not task.done()}
        if rng.random() < 0.25:
            given_up += rng.choice(list(running)).cancel()
        await asyncio.sleep(rng.random() * 0.01)
    await asyncio.gather(*running, return_exceptions=True)
    desk.close()
    return given_up


if __name__ == "__main__":
    main()
