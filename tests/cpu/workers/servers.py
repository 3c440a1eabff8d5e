"""A policy and vLLM servers beside it: weights, completions, and what is said of weights that change on their way.

Arguments: run file, output folder, key, URL of each server. Writes OUTPUT/result.json, and OUTPUT/export.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from gradients import everybodys, my_share, packed, sampled
from onlayouts import control, requests_for


def main() -> None:
    import torch
    import torch.distributed as dist

    from grpo_hpc.config import load_run
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.models.hf_folder import write_hf_folder
    from grpo_hpc.models.transport import ToFirstRank
    from grpo_hpc.rollout.engine import complete, whole_distribution
    from grpo_hpc.rollout.server_engine import ServerEngine
    from grpo_hpc.rollout.weights import digest, link
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.experience import by_key
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    cfg, target, (key, *urls) = load_run(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    plan = schedule(cfg)
    platform = make_platform(cfg.resources.device)
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    policy = TrainedPolicy(cfg, platform, control())
    engine = ServerEngine(cfg, platform, urls, key, control())
    said = {}

    prompts = [[256, *range(60, 64 + n)] for n in range(plan.global_batch_size)]
    requests, greedy = requests_for(cfg, prompts), requests_for(cfg, prompts, greedy=True)
    engine.version = 0
    said["before any weights"] = refusal(lambda: complete(engine, requests))
    first = engine.load_weights(policy.exporter.tensors(ToFirstRank()), 0)
    engine.version = 7
    said["of another step"] = refusal(lambda: complete(engine, requests[:1]))
    engine.version = 0
    too_long = replace(requests[0], prompt_tokens=np.ones(4000, int))
    said["too long"] = refusal(lambda: complete(engine, [requests[0], too_long]))
    rollout = sampled(requests, complete(engine, requests))
    rollout.table["advantage"] = [(-1.0) ** n for n in range(len(prompts))]
    everyone = everybodys([sample.response.tolist() for sample in rollout.samples.values()])
    set_token_weights(cfg, plan, rollout.table)
    share = my_share(cfg, rollout)
    scores = policy.scores(packed(cfg, share, platform, rollout))
    rollout.old = by_key(rollout.table, share, [values[0].cpu().numpy() for values in scores])
    mismatch = max(float(np.abs(old - rollout.samples[key].logprobs).max()) for key, old in rollout.old.items())
    policy.update(packed(cfg, share, platform, rollout))
    before = [c.tokens.tolist() for c in complete(engine, greedy)]
    engine.load_weights(policy.exporter.tensors(ToFirstRank()), 1)
    after = [c.tokens.tolist() for c in complete(engine, greedy)]
    short = [replace(request, options=whole_distribution(cfg.rollout, 4)) for request in requests[:2]]
    probed = [c.tokens.tolist() for c in complete(engine, short)]
    engine.forget()

    # tensors that change on their way: they are hashed, then sent as others
    real = link._hashing

    def damaged(tensors, seed, hashes):
        return ((name, tensor * 1.5) for name, tensor in real(tensors, seed, hashes))

    link._hashing = damaged
    said["damaged"] = refusal(lambda: engine.load_weights(policy.exporter.tensors(ToFirstRank()), 2))
    assert engine.version is None
    link._hashing = real
    again = engine.load_weights(policy.exporter.tensors(ToFirstRank()), 3)
    last = [c.tokens.tolist() for c in complete(engine, greedy)]

    tensors = policy.exporter.tensors()
    if dist.get_rank() == 0:
        write_hf_folder(tensors, target / "export", Path(cfg.model.path), {"step": "1"}, torch.float32)
    for _ in tensors:
        pass
    ranks = everybodys({"mismatch": mismatch, "before": before, "after": after, "last": last, "said": said})
    if dist.get_rank() == 0:
        found = {"prompts": prompts, "ranks": ranks, "sampled": everyone, "probed": probed, "bytes": first.bytes}
        found |= {"compared": first.compared, "again": again.compared, "most": digest.SAMPLED}
        (target / "result.json").write_text(json.dumps(found))
    dist.barrier()


def refusal(work):
    from grpo_hpc.errors import RolloutError

    try:
        work()
    except RolloutError as error:
        return str(error)
    raise AssertionError("nothing was refused")


if __name__ == "__main__":
    main()
