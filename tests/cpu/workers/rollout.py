"""Rollout beside training: log-probabilities on and off the engine, and the engine after a weight sync.

Arguments: run file, output folder. Writes OUTPUT/result.json and the exported model to OUTPUT/export. In the end syncs
go wrong on purpose; what was said of it is in the result too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from math import prod
from pathlib import Path

import numpy as np
from gradients import everybodys, my_share, packed, sampled
from onlayouts import control, requests_for


def main() -> None:
    import torch
    import torch.distributed as dist

    from grpo_hpc.config import load_run
    from grpo_hpc.config.batch import schedule, sequences_of
    from grpo_hpc.models.hf_folder import write_hf_folder
    from grpo_hpc.rollout.engine import ColocateEngine, Request, complete
    from grpo_hpc.rollout.sample import keys_of
    from grpo_hpc.rollout.weights import digest
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.experience import by_key
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    cfg, target = load_run(sys.argv[1]), Path(sys.argv[2])
    plan = schedule(cfg)
    platform = make_platform(cfg.resources.device)
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    policy = TrainedPolicy(cfg, platform, control())
    engine = ColocateEngine(cfg, platform)
    vllm = engine._llm.llm_engine.vllm_config
    assert vllm.scheduler_config.max_num_seqs == sequences_of(cfg) and vllm.load_config.load_format == "dummy"
    assert "before the policy's weights were synchronised" in refusal(engine, Request([256], 0, {}))
    digest.SAMPLED = 1000  # all of them
    synced = engine.load_weights(policy.exporter.tensors(), 0)
    buckets = list(policy.exporter.buckets)
    sizes = [sum(prod(shape) * 4 for e in bucket for shape in e.layout.hf_shapes) for bucket in buckets]
    limit = cfg.rollout.sync_bucket_mib * 2**20
    assert all(size <= limit for size, bucket in zip(sizes, buckets, strict=True) if len(bucket) > 1)
    travels = cfg.parallel.tensor_model_parallel_size > 1
    assert (max(len(bucket) for bucket in buckets) > 1) == travels and len(buckets) > 4 * 2

    prompts = [[256, *range(60, 64 + n)] for n in range(plan.global_batch_size)]
    requests, greedy = requests_for(cfg, prompts), requests_for(cfg, prompts, greedy=True)
    rollout = sampled(requests, complete(engine, requests))
    rollout.table["advantage"] = [(-1.0) ** n * (1 + n) for n in range(len(prompts))]
    set_token_weights(cfg, plan, rollout.table)
    share = my_share(cfg, rollout)
    scores = policy.scores(packed(cfg, share, platform, rollout))
    rollout.old = by_key(rollout.table, share, [values[0].cpu().numpy() for values in scores])
    worst = max(float(np.abs(old - rollout.samples[key].logprobs).max()) for key, old in rollout.old.items())
    step = policy.update(packed(cfg, share, platform, rollout))

    before = [c.tokens.tolist() for c in complete(engine, greedy)]
    engine.load_weights(policy.exporter.tensors(), 1)
    after = [c.tokens.tolist() for c in complete(engine, greedy)]
    per_rank = everybodys((worst, step["ratio/mean_abs_error"], before, after))
    tensors = policy.exporter.tensors()
    if dist.get_rank() == 0:
        write_hf_folder(tensors, target / "export", Path(cfg.model.path), {"step": "1"}, torch.float32)
        found = {"prompts": prompts, "ranks": per_rank, "compared": synced.compared, "bytes": synced.bytes}
        (target / "result.json").write_text(json.dumps(found))
    for _ in tensors:
        pass
    mine = [key for rows in share for key in keys_of(rollout.table[rows])]
    said = everybodys(provoke(cfg, policy, engine, packed(cfg, share, platform, rollout), rollout, mine))
    if dist.get_rank() == 0:
        (target / "provoked.json").write_text(json.dumps(said))
    if cfg.rollout.vllm_tensor_parallel_size == 1:  # once is enough
        grown = everybodys(turns(cfg, platform, policy, engine, packed(cfg, share, platform, rollout), requests[:2]))
        if dist.get_rank() == 0:
            (target / "grown.json").write_text(json.dumps(grown))
    dist.barrier()
    engine.close()


def refusal(engine, request):
    from grpo_hpc.errors import RolloutError
    from grpo_hpc.rollout.engine import complete

    try:
        complete(engine, [request])
    except RolloutError as error:
        return str(error)
    return "nothing was refused"


def provoke(cfg, policy, engine, batches, rollout, mine):
    """What is said when a tensor is damaged on its way, when the engine ignores a sync, when it gets a wrong matrix."""

    from grpo_hpc.errors import RolloutError
    from grpo_hpc.rollout.engine import Request, complete, whole_distribution
    from grpo_hpc.train import engine_check

    real, said = engine._hand_over, {}

    def damaged(tensors):
        real(tensors)
        engine._llm.apply_model(lambda model: model.model.layers[2].input_layernorm.weight.data[5].mul_(1.01))

    def ignored(tensors):
        for _ in tensors:
            pass

    policy.update(batches)
    for name, hand_over in {"damaged": damaged, "ignored": ignored}.items():
        if name == "ignored":
            policy.update(batches)
        engine._hand_over = hand_over
        try:
            engine.load_weights(policy.exporter.tensors(), 2)
        except RolloutError as error:
            said[name] = str(error)
        assert engine.version is None, "it must not sample after a sync that failed"
    engine._hand_over = real

    def compared():
        prompts = [sample.tokens[~sample.mask] for sample in map(rollout.samples.get, mine)]
        requests = [Request(p, 3, whole_distribution(cfg.rollout, 8)) for p in prompts]
        probed = sampled(requests, [complete(engine, [r])[0] for r in requests])
        rows = np.arange(len(prompts))
        scores = policy.scores(packed(cfg, [rows], policy._platform, probed))[0][0].cpu().numpy()
        return engine_check.check(cfg, np.concatenate([s.logprobs for s in probed.samples.values()]), scores)

    engine.load_weights(policy.exporter.tensors(), 2)
    said["distance"] = compared()
    turned = ((n, t.T if "layers.1.self_attn.o_proj.weight" in n else t) for n, t in policy.exporter.tensors())
    engine.load_weights(turned, 3)
    try:
        compared()
    except RolloutError as error:
        said["canary"] = str(error)
    return said


def turns(cfg, platform, policy, engine, batches, requests):
    """MiB that the process has grown by from the 10th to the 60th turn of sync, rollout and training: host, device."""
    from grpo_hpc.rollout.engine import complete
    from grpo_hpc.rollout.residency import Residency, Use
    from grpo_hpc.train.colocation import Colocation
    from grpo_hpc.train.watch import PhaseClock

    residency = Residency(cfg.rollout.sleep_level, True, True)
    colocation = Colocation(residency, platform, policy, (), PhaseClock(platform, None))
    colocation.attach(engine)
    sizes = []
    for turn in range(60):
        colocation.enter(Use.SYNC)
        engine.load_weights(policy.exporter.tensors(), 10 + turn)
        colocation.enter(Use.ROLLOUT)
        complete(engine, requests)
        colocation.enter(Use.TRAIN)
        policy.update(batches[:1])
        sizes.append((resident_mib(), device_mib(platform)))
    return [last - first for first, last in zip(sizes[9], sizes[59], strict=True)]


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def device_mib(platform):
    """In use on the GPU by this process, without what torch has only cached; by anybody where nobody tells who."""
    if not platform.is_cuda:
        return 0.0
    import torch
    from vllm.third_party import pynvml

    platform.synchronize()
    platform.empty_cache()
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(platform.device).uuid}")
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
        if process.pid == os.getpid() and process.usedGpuMemory:
            return process.usedGpuMemory / 2**20
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


if __name__ == "__main__":
    main()
