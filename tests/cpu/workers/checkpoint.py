"""Save after two optimizer steps, load into a fresh policy, and go on with both: they must stay equal to the bit.

Arguments: output folder, run files for this number of ranks. Prints what differs and fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gradients import my_share, packed, trajectories
from onlayouts import each_layout


def main() -> None:
    import torch

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.train import checkpoints
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    folder = Path(sys.argv[1])
    for cfg, platform in each_layout(sys.argv[2:]):
        plan = schedule(cfg)
        everything = trajectories(plan.global_batch_size, plan.num_generations)
        batches = packed(cfg, my_share(cfg, everything), platform)

        policy = TrainedPolicy(cfg, platform)
        for _ in range(2):
            policy.update(batches)
        half_used = TrainerState(step=2, rollout=everything[:3], rollout_used=1, surplus=everything[3:5])
        saved = checkpoints.save(folder / cfg.name, policy, half_used, platform)
        resumed = TrainedPolicy(cfg, platform)
        state = checkpoints.load(saved, resumed, platform)
        assert state == half_used
        for step in (3, 4):
            before, after = policy.update(batches), resumed.update(batches)
            assert before == after, f"step {step} of {cfg.name}: {before} and {after}"
            for (name, one), (_, other) in zip(policy.exporter.tensors(), resumed.exporter.tensors(), strict=True):
                assert torch.equal(one, other), f"{name} after step {step} of {cfg.name}: {(one - other).abs().max()}"


if __name__ == "__main__":
    main()
