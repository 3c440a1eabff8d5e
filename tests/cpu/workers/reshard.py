"""Training before and after a checkpoint is cut for another layout.

Arguments: folder, run file, and ``save`` (two steps, save, two more) or ``go_on`` (load FOLDER/cut, two steps).
"""

from __future__ import annotations

import sys
from pathlib import Path

from gradients import my_share, packed, trajectories


def main() -> None:
    import torch.distributed as dist
    from safetensors.torch import save_file

    from grpo_hpc.config import load_run
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train import checkpoints
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    folder, cfg, what = Path(sys.argv[1]), load_run(sys.argv[2]), sys.argv[3]
    platform = make_platform(cfg.resources.device)
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    plan = schedule(cfg)
    batches = packed(cfg, my_share(cfg, trajectories(plan.global_batch_size, plan.num_generations)), platform)
    policy = TrainedPolicy(cfg, platform)
    if what == "save":
        for _ in range(2):
            policy.update(batches)
        checkpoints.save(folder / "saved", policy, TrainerState(step=2), platform, reshardable=True)
    else:
        assert checkpoints.load(folder / "cut", policy, platform) == TrainerState(step=2)
    for _ in range(2):
        policy.update(batches)
    tensors = {name: value.clone().contiguous() for name, value in policy.exporter.tensors()}
    if dist.get_rank() == 0:
        save_file(tensors, folder / ("four.safetensors" if what == "save" else "went_on.safetensors"))
    dist.barrier()


if __name__ == "__main__":
    main()
