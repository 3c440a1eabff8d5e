"""One optimizer step on fixed completions: loss, every gradient and every updated weight, as Hugging Face tensors.

Arguments: output folder, run files for this number of ranks, one layout after another. Each gives
OUTPUT/<name>.safetensors, which must not depend on the layout.
"""

from __future__ import annotations

import random
import sys
from datetime import timedelta
from typing import Any

import numpy as np
from onlayouts import control, each_layout
from torch import Tensor

from grpo_hpc.config import RunConfig
from grpo_hpc.control import Control
from grpo_hpc.rollout.sample import Key, Sample, keys_of, summaries
from grpo_hpc.train.experience import Experience, by_key
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.micro_batches import PackedBatch

Share = list[np.ndarray]
"""Micro-batches of one rank: rows of the table."""


def completions(count: int, group: int) -> Experience:
    """Random completions of random lengths with random advantages, all of them on every rank; not dealt yet."""
    rng = random.Random(7)
    samples, advantages = [], []
    for number in range(count):
        length = rng.randint(2, 14)
        logprobs = [-rng.random() * 6 for _ in range(length)]
        prompt = [rng.randrange(256) for _ in range(rng.randint(3, 9))]
        response = [rng.randrange(263) for _ in range(length)]
        key = Key(number // group, number % group)
        samples.append(Sample.single_turn(key, np.array(prompt), np.array(response), np.array(logprobs), 0, "stop"))
        advantages.append(rng.uniform(-2, 2))
    table = summaries(samples, 0, 1)
    table["advantage"] = advantages
    return Experience(table, [], {sample.key: sample for sample in samples})


def sampled(requests: Any, answers: Any, version: int = 0) -> Experience:
    """What an engine gave, each request a group of its own."""
    samples = [
        Sample.single_turn(Key(n, 0), request.prompt_tokens, c.tokens, c.logprobs, version, c.finish_reason)
        for n, (request, c) in enumerate(zip(requests, answers, strict=True))
    ]
    return Experience(summaries(samples, 0, 1), [], {sample.key: sample for sample in samples})


def everybodys(mine: Any) -> list[Any]:
    """What every rank has, on every rank."""
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts


def move_off_policy(scores: list[Tensor], share: Share, experience: Experience) -> None:
    """Old and reference log-probabilities near the present ones, so that some ratios are clipped and some are not.

    They are known on the last pipeline stage only, and needed there only.
    """
    if not scores:
        return
    experience.old, experience.ref = {}, {}
    for key, now in by_key(experience.table, share, [values[0].cpu().numpy() for values in scores]).items():
        rng = random.Random(f"{key.position}/{key.sample}")
        experience.old[key] = np.array([x + rng.uniform(-0.3, 0.3) for x in now.tolist()], np.float32)
        experience.ref[key] = np.array([x + rng.uniform(-0.5, 0.5) for x in now.tolist()], np.float32)


def my_share(cfg: RunConfig, experience: Experience, rows: np.ndarray | None = None) -> Share:
    """This rank's micro-batches of all completions, or of ``rows``."""
    from megatron.core import parallel_state as mpu

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train.megatron.parallel import packing_of

    rows = np.arange(len(experience.table)) if rows is None else rows
    dealt = packing_of(cfg).deal(experience.table[rows], schedule(cfg).dp)
    return [rows[batch] for batch in dealt[mpu.get_data_parallel_rank()]]


def packed(cfg: RunConfig, share: Share, platform: Platform, experience: Experience) -> list[PackedBatch]:
    from grpo_hpc.train.megatron.parallel import packing_of

    return [experience.pack(rows, platform.device, packing_of(cfg).layout) for rows in share]


def made_step(cfg: RunConfig, platform: Platform, policy: Any, reference: Any = None) -> Any:
    """A :class:`grpo_hpc.train.step.Step` on these ranks."""
    from megatron.core import parallel_state as mpu

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.rollout.exchange import Exchange
    from grpo_hpc.train.megatron.parallel import packing_of, place_of
    from grpo_hpc.train.step import Step
    from grpo_hpc.train.watch import PhaseClock

    control = Control(timedelta(minutes=5))
    exchange, clock = Exchange(control, mpu.get_data_parallel_rank()), PhaseClock(platform, None)
    place = place_of(control)
    return Step(cfg, schedule(cfg), platform, policy, reference, packing_of(cfg), exchange, control, place, clock)


class files_of:
    """Checkpoints as the trainer writes and reads them, with the parts of ``step``."""

    def __init__(self, step: Any) -> None:
        from grpo_hpc.train.megatron.parallel import place_of

        self._step, self._control, self._place = step, step._control, place_of(step._control)

    def save(self, folder: Any, policy: Any, state: Any, platform: Platform, **options: Any) -> Any:
        from grpo_hpc.train import checkpoints
        from grpo_hpc.train.megatron.distributed_checkpoint import DistributedCheckpoint

        contents = DistributedCheckpoint(policy, platform, **options)
        return checkpoints.save(folder, contents, state, self._control, self._place)

    def load(self, checkpoint: Any, policy: Any, platform: Platform, **options: Any) -> Any:
        from functools import partial

        from grpo_hpc.train import checkpoints
        from grpo_hpc.train.megatron.distributed_checkpoint import DistributedCheckpoint
        from grpo_hpc.train.rollout_files import read_rollout

        left = partial(read_rollout, exchange=self._step._exchange, deal=self._step.dealing.deal, place=self._place)
        return checkpoints.load(checkpoint, DistributedCheckpoint(policy, platform, **options), self._control, left)


def begun(step: Any, everything: Experience) -> Experience:
    """``everything`` as a rollout that ``step`` has completed, each rank having sampled a part of it."""
    import torch.distributed as dist

    table = everything.table.copy()
    table["owner"] = np.arange(len(table)) % dist.get_world_size()
    mine = keys_of(table[table["owner"] == dist.get_rank()])
    return step.begin(table, {key: everything.samples[key] for key in mine})


def main() -> None:
    import torch.distributed as dist
    from safetensors.torch import save_file

    folder = sys.argv[1]
    for cfg, platform in each_layout(sys.argv[2:]):
        tensors, result = one_step(cfg, platform)
        if dist.get_rank() == 0:
            metadata = {key: repr(value) for key, value in result.items()}
            save_file(tensors, f"{folder}/{cfg.name}.safetensors", metadata=metadata)


def one_step(cfg: RunConfig, platform: Platform) -> tuple[dict[str, Tensor], Any]:
    import torch.distributed as dist
    from traffic import check_export

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.models.movers import HfExporter
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan = schedule(cfg)
    policy = TrainedPolicy(cfg, platform, control())
    everything = completions(plan.global_batch_size, plan.num_generations)
    set_token_weights(cfg, plan, everything.table)
    mine = my_share(cfg, everything)
    move_off_policy(policy.scores(packed(cfg, mine, platform, everything)), mine, everything)
    batches = packed(cfg, mine, platform, everything)

    def gradients() -> list[tuple[str, Tensor]]:
        policy.accumulate(batches)
        if cfg.parallel.use_distributed_optimizer:
            gather_gradients(policy.ddp)
        exporter = HfExporter(
            policy.chunks, platform.layer_spec, control(), values=lambda p: p.main_grad if p.requires_grad else p
        )
        return [(name, value.clone()) for name, value in exporter.tensors()]

    tensors = {f"grad/{name}": value for name, value in gradients()}
    result = policy.update(batches)
    if cfg.parallel.overlap_param_gather or dist.get_world_size() == 1:
        # at once, while parameters may still be on their way from other ranks: the forward pass must wait for each
        tensors |= {f"next/{name}": value for name, value in gradients()}
    tensors |= {f"weight/{name}": value.clone() for name, value in policy.exporter.tensors()}
    check_export(policy)
    return {name: value.cpu().contiguous() for name, value in tensors.items()}, result


def gather_gradients(ddp: list[Any]) -> None:
    """Make every gradient whole: the distributed optimizer leaves each rank with the reduced part of its own."""
    import torch.distributed as dist

    for buffer in [buffer for chunk in ddp for buffer in chunk.buffers + chunk.expert_parallel_buffers]:
        group = buffer.data_parallel_group
        for bucket in buffer.buckets:
            own = bucket.grad_data.view(group.size(), -1)[group.rank()].clone()
            dist.all_gather_into_tensor(bucket.grad_data, own, group=group)


if __name__ == "__main__":
    main()
