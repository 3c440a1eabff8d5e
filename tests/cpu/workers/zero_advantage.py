"""Gradients of a step with and without completions of advantage 0. Arguments: run file. Fails if they differ."""

from __future__ import annotations

import sys

import numpy as np
from gradients import completions, move_off_policy, my_share, packed
from onlayouts import control


def main() -> None:
    import torch

    from grpo_hpc.config import load_run
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.models.movers import HfExporter
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy
    from grpo_hpc.train.packing import with_gradient

    cfg = load_run(sys.argv[1])
    platform = make_platform("cpu")
    platform.init_distributed()
    init_model_parallel(cfg, platform)
    policy = TrainedPolicy(cfg, platform, control())
    everything = completions(16, 4)
    table = everything.table
    set_token_weights(cfg, schedule(cfg), table)
    mine = my_share(cfg, everything)
    move_off_policy(policy.scores(packed(cfg, mine, platform, everything)), mine, everything)
    table["advantage"][table["position"] % 2 == 1] = 0.0

    def gradients(rows: np.ndarray) -> dict[str, torch.Tensor]:
        policy.accumulate(packed(cfg, my_share(cfg, everything, rows), platform, everything))
        exporter = HfExporter(policy.chunks, platform.layer_spec, control(), values=lambda p: p.main_grad)
        return {name: value.clone() for name, value in exporter.tensors()}

    chosen = with_gradient(table, multiple_of=1)
    assert len(chosen) == 8
    whole, part = gradients(np.arange(len(table))), gradients(chosen)
    for name, value in whole.items():
        assert value.any() and (part[name] - value).norm() <= 1e-5 * value.norm(), name


if __name__ == "__main__":
    main()
