"""Three steps with a part of the model frozen: what moves, what has a gradient, what has optimizer state.

Arguments: output folder, run files for this number of ranks. Each gives OUTPUT/<name>.safetensors.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from gradients import completions, my_share, packed
from onlayouts import control, each_layout


def main() -> None:
    import torch.distributed as dist
    from safetensors.torch import save_file

    from grpo_hpc.config.batch import schedule
    from grpo_hpc.models.movers import local_parameters
    from grpo_hpc.train.credit import set_token_weights
    from grpo_hpc.train.megatron.optimizer import torch_adams
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    folder = Path(sys.argv[1])
    for cfg, platform in each_layout(sys.argv[2:]):
        plan, policy = schedule(cfg), TrainedPolicy(cfg, platform, control())
        everything = completions(plan.global_batch_size, plan.num_generations)
        set_token_weights(cfg, plan, everything.table)
        for _ in range(3):
            policy.update(packed(cfg, my_share(cfg, everything), platform, everything))

        parameters = local_parameters(policy.chunks)
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        assert 0 < len(trained) < len(parameters)
        for name, parameter in parameters.items():
            if name not in trained:
                assert parameter.grad is None and not hasattr(parameter, "main_grad"), name
        states = [state for adam in torch_adams(policy.optimizer) for state in adam.state.values()]
        count = torch.tensor(sum(state["exp_avg"].numel() for state in states))
        wanted = torch.tensor(sum(p.numel() for p in {id(p): p for p in trained.values()}.values()))
        if cfg.parallel.use_distributed_optimizer:
            dist.all_reduce(count)  # every replica has a part of it
        assert count == wanted, (count, wanted)
        buffers = [b for chunk in policy.ddp for b in chunk.buffers]
        assert sum(b.grad_data.numel() for b in buffers) < sum(p.numel() for p in parameters.values())

        tensors = {name: value.clone().contiguous() for name, value in policy.exporter.tensors()}
        if dist.get_rank() == 0:
            save_file(tensors, folder / f"{cfg.name}.safetensors")
            frozen = [name for name in tensors if re.search(cfg.tuner.freeze_parameters_regex, name)]
            (folder / "frozen").write_text("\n".join(frozen))


if __name__ == "__main__":
    main()
