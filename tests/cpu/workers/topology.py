"""Megatron's own process groups for many layouts, as JSON. Arguments: output file, ranks, JSON list of layouts.

The ranks are forks of one process, so that torch and Megatron are imported once.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu


def rank_main(rank: int, ranks: int, output: Path, layouts: list[dict[str, int]]) -> None:
    torch.set_num_threads(1)
    getters = {
        "tp": mpu.get_tensor_model_parallel_group,
        "cp": mpu.get_context_parallel_group,
        "dp": mpu.get_data_parallel_group,
        "dp-cp": lambda: mpu.get_data_parallel_group(with_context_parallel=True),
        "tp-cp": mpu.get_tensor_and_context_parallel_group,
        "pp": mpu.get_pipeline_model_parallel_group,
        "tp-pp": mpu.get_model_parallel_group,
        "etp": mpu.get_expert_tensor_parallel_group,
        "ep": mpu.get_expert_model_parallel_group,
        "edp": mpu.get_expert_data_parallel_group,
        "etp-ep": mpu.get_expert_tensor_and_model_parallel_group,
        "etp-ep-pp": mpu.get_expert_tensor_model_pipeline_parallel_group,
    }
    found = []
    for number, layout in enumerate(layouts):
        # a world of its own for every layout: each group has threads, which live as long as the world
        store = f"file://{output}.store{number}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
        mpu.initialize_model_parallel(
            tensor_model_parallel_size=layout["tp"],
            pipeline_model_parallel_size=layout["pp"],
            context_parallel_size=layout["cp"],
            expert_model_parallel_size=layout["ep"],
            expert_tensor_parallel_size=layout["etp"],
            create_gloo_process_groups=False,
        )
        mine = {name: dist.get_process_group_ranks(getter()) for name, getter in getters.items()}
        everyone: list[object] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        found.append(everyone)
        mpu.destroy_model_parallel()
        dist.destroy_process_group()
    if rank == 0:
        output.write_text(json.dumps(found))


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    count, wanted = int(sys.argv[2]), json.loads(sys.argv[3])
    workers = [context.Process(target=rank_main, args=(n, count, Path(sys.argv[1]), wanted)) for n in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    raise SystemExit(any(worker.exitcode for worker in workers))
