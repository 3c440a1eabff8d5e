"""One optimizer step on fixed trajectories: loss, every gradient and every updated weight, as Hugging Face tensors.

Arguments: output folder, run files for this number of ranks, one layout after another. Each gives
OUTPUT/<name>.safetensors, which must not depend on the layout.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from onlayouts import each_layout
from torch import Tensor

from grpo_hpc.config import RunConfig
from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.micro_batches import PackedBatch


def trajectories(count: int, group: int) -> list[Trajectory]:
    """Random completions of random lengths, the same on every rank."""
    rng = random.Random(7)
    made = []
    for number in range(count):
        length = rng.randint(2, 14)
        logprobs = [-rng.random() * 6 for _ in range(length)]
        made.append(
            Trajectory(
                prompt_id=str(number // group),
                position=number // group,
                sample=number % group,
                prompt_tokens=[rng.randrange(256) for _ in range(rng.randint(3, 9))],
                response_tokens=[rng.randrange(263) for _ in range(length)],
                rollout_logprobs=logprobs,
                finish_reason="stop",
                weight_version=0,
                text="",
                advantage=rng.uniform(-2, 2),
            )
        )
    return made


def move_off_policy(scores: list[Tensor], mine: list[Trajectory]) -> None:
    """Old and reference log-probabilities near the present ones, so that some ratios are clipped and some are not.

    They are known on the last pipeline stage only, and needed there only.
    """
    if not scores:
        return
    values = iter(torch.cat(scores, dim=1)[0].tolist())
    for t in mine:
        rng = random.Random(f"{t.position}/{t.sample}")
        now = [next(values) for _ in t.response_tokens]
        t.old_logprobs = [x + rng.uniform(-0.3, 0.3) for x in now]
        t.ref_logprobs = [x + rng.uniform(-0.5, 0.5) for x in now]


def my_share(cfg: RunConfig, everything: list[Trajectory]) -> list[list[Trajectory]]:
    """This rank's micro-batches."""
    from megatron.core import parallel_state as mpu

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train.megatron.parallel import packing_of

    return packing_of(cfg).deal(everything, schedule(cfg).dp)[mpu.get_data_parallel_rank()]


def packed(cfg: RunConfig, mine: list[list[Trajectory]], platform: Platform) -> list[PackedBatch]:
    from grpo_hpc.train.megatron.parallel import packing_of
    from grpo_hpc.train.micro_batches import pack

    return [pack(batch, platform.device, packing_of(cfg).layout) for batch in mine]


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
    policy = TrainedPolicy(cfg, platform)
    everything = trajectories(plan.global_batch_size, plan.num_generations)
    set_token_weights(cfg, plan, everything)
    mine = my_share(cfg, everything)
    move_off_policy(policy.scores(packed(cfg, mine, platform)), [t for batch in mine for t in batch])
    batches = packed(cfg, mine, platform)

    def gradients() -> list[tuple[str, Tensor]]:
        policy.accumulate(batches)
        if cfg.parallel.use_distributed_optimizer:
            gather_gradients(policy.ddp)
        exporter = HfExporter(
            policy.chunks, platform.layer_spec, values=lambda p: p.main_grad if p.requires_grad else p
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
