"""One family after another: what vLLM samples from synced weights, before and after an update, against the trainer.

Arguments: output folder, run files. Writes OUTPUT/engines.json: for each run, by its name, the largest distances of
log-probabilities before and after a large update, or what went wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gradients import my_share, packed, sampled
from onlayouts import control, requests_for

from grpo_hpc.config import RunConfig
from grpo_hpc.train.megatron.platform import Platform

OPEN: list[Any] = []


def main() -> None:
    from grpo_hpc.config import load_run
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform

    folder, runs = Path(sys.argv[1]), [load_run(file) for file in sys.argv[2:]]
    platform = make_platform("cpu")
    platform.init_distributed()
    init_model_parallel(runs[0], platform)
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    found: dict[str, Any] = {}
    policies = [TrainedPolicy(cfg, platform, control()) for cfg in runs]  # vLLM replaces streams that Megatron takes
    for cfg, policy in zip(runs, policies, strict=True):
        try:
            found[cfg.name] = distances(cfg, platform, policy)
        except Exception as error:  # what is wrong with one says nothing of the others
            found[cfg.name] = f"{type(error).__name__}: {error}"
        (folder / "engines.json").write_text(json.dumps(found))


def distances(cfg: RunConfig, platform: Platform, policy: Any) -> list[float]:
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.rollout.engine import ColocateEngine, complete
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.experience import by_key

    plan = schedule(cfg)
    engine = ColocateEngine(cfg, platform)
    requests = requests_for(cfg, [[256, *range(60, 64 + n)] for n in range(plan.global_batch_size)])
    worst = []
    for version in range(2):
        engine.load_weights(policy.exporter.tensors(), version)
        rollout = sampled(requests, complete(engine, requests))
        rollout.table["advantage"] = [(-1.0) ** n * (1 + n) for n in range(len(requests))]
        set_token_weights(cfg, plan, rollout.table)
        share = my_share(cfg, rollout)
        batches = packed(cfg, share, platform, rollout)
        scores = by_key(rollout.table, share, [values[0].numpy() for values in policy.scores(batches)])
        worst.append(max(float(np.abs(now - rollout.samples[key].logprobs).max()) for key, now in scores.items()))
        rollout.old = scores
        policy.update(packed(cfg, share, platform, rollout))
    OPEN.append(engine)  # its end would take the process group away
    return worst


if __name__ == "__main__":
    main()
