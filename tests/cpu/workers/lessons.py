"""Gradients of one lesson of a fixed rollout, for every run file: of a kind of objective in a layout.

Arguments: output folder, run files. Each gives OUTPUT/<name>.safetensors, which must not depend on the layout.
"""

from __future__ import annotations

import random
import sys

import numpy as np
from gradients import begun, completions, made_step
from onlayouts import control, each_layout


def main() -> None:
    import torch.distributed as dist
    from safetensors.torch import save_file

    folder = sys.argv[1]
    for cfg, platform in each_layout(sys.argv[2:]):
        tensors, values = one_lesson(cfg, platform)
        if dist.get_rank() == 0:
            metadata = {key: repr(value) for key, value in values.items()}
            save_file(tensors, f"{folder}/{cfg.name}.safetensors", metadata=metadata)


def one_lesson(cfg, platform):
    from grpo_hpc.config.batch import schedule
    from grpo_hpc.models.movers import HfExporter
    from grpo_hpc.rollout.sample import LENGTH
    from grpo_hpc.train.experience import trained_rows
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan = schedule(cfg)
    policy = TrainedPolicy(cfg, platform, control())
    step = made_step(cfg, platform, policy, policy.scores)
    everything = completions(plan.generation_batch_size, plan.num_generations)
    table = everything.table
    table["reward"] = table["advantage"]
    table["end"][(table["position"] % 3 == 1) & (table["sample"] == 0)] = LENGTH
    experience = begun(step, everything)
    for key, sample in experience.samples.items():  # away from the present policy: ratios clipped, weights bounded
        rng = random.Random(f"{key.position}/{key.sample}")
        old = np.zeros(len(sample.logprobs), np.float32)
        if experience.old is not None:
            old = experience.old[key] = moved(experience.old[key], 0.3, rng)
            experience.ref[key] = moved(experience.ref[key], 0.5, rng)
        object.__setattr__(sample, "logprobs", moved(old, 0.3, rng))
    experience.used = plan.steps_per_generation + 1  # the second step of the second pass
    advantages, threshold, constant = step.settled(experience)
    policy.accumulate(step.batches(experience, advantages), threshold)
    exporter = HfExporter(policy.chunks, platform.layer_spec, control(), values=lambda p: p.main_grad)
    gradients = {name: value.clone().contiguous() for name, value in exporter.tensors()}
    values = policy.update(step.batches(experience, advantages), threshold)
    values["loss"] += constant
    trained = len(trained_rows(experience.steps[experience.number]))
    return gradients, values | {"threshold": threshold, "trained": float(trained)}


def moved(values, by, rng):
    return np.array([x + rng.uniform(-by, by) for x in values.tolist()], np.float32)


if __name__ == "__main__":
    main()
