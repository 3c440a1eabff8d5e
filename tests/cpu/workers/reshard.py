"""Training before and after a checkpoint is cut for another layout.

Arguments: folder, run file, and ``save`` (two steps, save, two more) or ``go_on`` (load FOLDER/cut, two steps).
"""

from __future__ import annotations

import sys
from pathlib import Path

from gradients import completions, files_of, made_step, my_share, packed
from onlayouts import control


def main() -> None:
    import torch.distributed as dist
    from safetensors.torch import save_file

    from grpo_hpc.config import load_run
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    folder, cfg, what = Path(sys.argv[1]), load_run(sys.argv[2]), sys.argv[3]
    platform = make_platform(cfg.resources.device)
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    plan = schedule(cfg)
    everything = completions(plan.global_batch_size, plan.num_generations)
    batches = packed(cfg, my_share(cfg, everything), platform, everything)
    policy = TrainedPolicy(cfg, platform, control())
    files = files_of(made_step(cfg, platform, policy))
    if what == "save":
        for _ in range(2):
            policy.update(batches)
        files.save(folder / "saved", policy, TrainerState(step=2), platform, reshardable=True)
    else:
        state = files.load(folder / "cut", policy, platform)
        assert (state.step, state.experience, len(state.carried.table)) == (2, None, 0)
    for _ in range(2):
        policy.update(batches)
    tensors = {name: value.clone().contiguous() for name, value in policy.exporter.tensors()}
    if dist.get_rank() == 0:
        save_file(tensors, folder / ("four.safetensors" if what == "save" else "went_on.safetensors"))
    dist.barrier()


if __name__ == "__main__":
    main()
