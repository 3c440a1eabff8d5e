"""Megatron-Core loads checkpoints of ours into real models, and saves some for us to read.

Arguments: output folder, run files of one layout, each with its model converted to OUTPUT/<number>_megatron. Saves
OUTPUT/<number>_saved. Fails when a loaded parameter is not bit-equal to the same model loaded from Hugging Face.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist


def main() -> None:
    from megatron.core import dist_checkpointing

    from grpo_hpc.config import load_run
    from grpo_hpc.models.movers import local_parameters
    from grpo_hpc.train.megatron.parallel import init_model_parallel
    from grpo_hpc.train.megatron.platform import make_platform
    from grpo_hpc.train.megatron.trained_policy import build_model

    folder, runs = Path(sys.argv[1]), [load_run(file) for file in sys.argv[2:]]
    platform = make_platform(runs[0].resources.device)
    platform.init_distributed()
    init_model_parallel(runs[0], platform)
    for number, cfg in enumerate(runs):
        (model,) = build_model(cfg, platform)
        wanted = {name: tensor.detach().clone() for name, tensor in local_parameters([model]).items()}
        with torch.no_grad():
            for tensor in local_parameters([model]).values():
                tensor.fill_(7.0)
        with platform.megatron():
            loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(folder / f"{number}_megatron"))
            model.load_state_dict(loaded["model"])
            saved = folder / f"{number}_saved"
            if dist.get_rank() == 0:
                saved.mkdir()
            dist.barrier()
            dist_checkpointing.save(model.sharded_state_dict(), str(saved))
        for name, tensor in local_parameters([model]).items():
            assert torch.equal(tensor, wanted[name]), f"{name} of {cfg.model.path} on rank {dist.get_rank()}"
    dist.barrier()


if __name__ == "__main__":
    main()
