"""Steps whose loss is not a number in one micro-batch of one rank: no rank makes an update, and the next step is good.

Arguments: run files for two ranks. Where they are data-parallel it is the last rank's micro-batch; between pipeline
stages only the last stage has a loss.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import torch
from gradients import completions, my_share, packed
from onlayouts import control, each_layout


def main() -> None:
    for cfg, platform in each_layout(sys.argv[1:]):
        skip_and_go_on(cfg, platform)


def skip_and_go_on(cfg, platform):
    import torch.distributed as dist

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.errors import TrainingDiverged
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan, policy, undisturbed = (
        schedule(cfg),
        TrainedPolicy(cfg, platform, control()),
        TrainedPolicy(cfg, platform, control()),
    )
    everything = completions(plan.global_batch_size, plan.num_generations)
    set_token_weights(cfg, plan, everything.table)
    good = packed(cfg, my_share(cfg, everything), platform, everything)
    bad = list(good)
    if dist.get_rank() == 1:
        bad[1] = replace(bad[1], advantages=bad[1].advantages * torch.nan)

    for each in (policy, undisturbed):
        assert each.update(good)["skipped_updates"] == 0
    before = state_of(policy)
    values = policy.update(bad)
    assert values["skipped_updates"] == policy.skipped == 1, values
    assert not math.isfinite(values["loss"] + values["grad_norm"])
    changed = [name for name, value in state_of(policy).items() if not value.equal(before[name])]
    assert not changed, f"{cfg.name}, rank {dist.get_rank()}: {changed[:3]}"
    # what a skipped step leaves is what a run without it has, but for the place in the learning-rate schedule
    values = policy.update(good)
    assert values["skipped_updates"] == policy.skipped == 0
    undisturbed.update(good)
    for name, value in state_of(policy).items():
        assert value.isfinite().all() and not (name.startswith("weight") and value.equal(before[name])), name
        # Adam's counter counts the skipped step, too
        other = state_of(undisturbed)[name]
        assert (value - other).norm() <= 1e-2 * other.norm(), name

    assert policy.update(bad)["skipped_updates"] == 1
    try:
        policy.update(bad)
    except TrainingDiverged as error:
        assert "2 optimizer steps in a row, the last of them step 5" in error.message, error.message
    else:
        raise AssertionError("it went on behind max_skipped_updates")


def state_of(policy):
    """Copies of this rank's weights, moments and biases of routers."""
    policy.settle()
    found = {f"weight/{n}/{name}": p for n, chunk in enumerate(policy.chunks) for name, p in chunk.named_parameters()}
    found |= {f"bias/{n}/{name}": b for n, chunk in enumerate(policy.chunks) for name, b in chunk.named_buffers()}
    parts = getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])
    for n, (adam, parameter) in enumerate((part.optimizer, p) for part in parts for p in part.optimizer.state):
        for moment in ("exp_avg", "exp_avg_sq"):
            found[f"{moment}/{n}"] = adam.state[parameter][moment]
    return {name: value.detach().clone() for name, value in found.items() if "local_tokens" not in name}


if __name__ == "__main__":
    main()
