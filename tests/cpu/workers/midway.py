"""A rollout that is half used when the run stops, gone on with in the same layout or in another.

Arguments: folder, run file, and ``save`` (one step, save, the second step) or ``go_on`` (load, the second step). Half
of the groups have equal rewards, so they teach nothing but where turns have rewards, too, and one of their completions
fills up what ranks must share evenly. After ``save``, ``few`` leaves three that teach in the second step.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from gradients import begun, completions, files_of, made_step
from onlayouts import control

from grpo_hpc.rollout.sample import keys_of, summaries


def main() -> None:
    import torch.distributed as dist

    from grpo_hpc.config import load_run
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.errors import CheckpointError
    from grpo_hpc.train.checkpoints import TrainerState
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    folder, cfg, what = Path(sys.argv[1]), load_run(sys.argv[2]), sys.argv[3]
    cfg = cfg.model_copy(update={"algorithm": cfg.algorithm.model_copy(update={"turn_advantage_coef": 0.5})})
    platform = make_platform("cpu")
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    plan, policy = schedule(cfg), TrainedPolicy(cfg, platform, control())
    step = made_step(cfg, platform, policy, None)
    files = files_of(step)
    if what == "save":
        everything = completions(plan.generation_batch_size, plan.num_generations)
        table = everything.table
        table["reward"] = table["advantage"] * (table["position"] % 2)
        table["reward"][table["position"] == 7] = [2.0, 1.0, 1.5, 1.5]  # two of them have no advantage
        if sys.argv[4:] == ["few"]:
            table["reward"][table["position"] >= 5] = 1.0
        else:
            reward_turns(everything)
            table["reward"][table["position"] == 6] = [1.0, 1.0, 1.0, np.nan]  # the last one failed
        table["reward"][table["position"] == 9] = [4.0, 1.0, 1.0, 2.0]  # one of them: 9 teach in the second step
        experience = begun(step, everything)
        step(experience, 0)
        files.save(folder / "saved", policy, TrainerState(step=1, experience=experience), platform, reshardable=True)
    else:
        try:
            experience = files.load(folder / "saved/step_00000001", policy, platform).experience
        except CheckpointError as error:
            return said(folder / f"{cfg.name}.json", {"error": error.message, "hint": error.hint})
    made = step(experience, 1)
    assert all(key in experience.samples for key in experience.old), "what is known is of what is here"
    assert experience.turns is None or experience.turns.keys() == experience.samples.keys()
    if dist.get_rank() == 0:
        found = {name: made.metrics[name] for name in ("loss", "grad_norm")} | {"trained": len(made.trained)}
        (folder / f"{cfg.name}.json").write_text(json.dumps(found))
    dist.barrier()
    return None


def reward_turns(everything):
    """The only turn of each completion of two groups, one of which teaches by that alone."""
    for row in np.flatnonzero(np.isin(everything.table["position"], [1, 6])):
        key = keys_of(everything.table)[row]
        given = np.array([row % 3], np.float32)
        everything.samples[key] = sample = replace(everything.samples[key], turn_rewards=given)
        for name in ("turn_rewards", "lowest_turn", "highest_turn"):
            everything.table[name][row] = summaries([sample], 0)[name][0]


def said(file: Path, found: dict[str, str]) -> None:
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
