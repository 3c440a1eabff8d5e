"""Gradients of one lesson of a fixed rollout, for every run file: of a kind of objective in a layout.

Arguments: output folder, run files. Each gives OUTPUT/<name>.safetensors, which must not depend on the layout.
"""

from __future__ import annotations

import random
import sys

from gradients import trajectories
from onlayouts import each_layout


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
    from grpo_hpc.train.lessons import Lessons
    from grpo_hpc.train.megatron.parallel import packing_of
    from grpo_hpc.train.megatron.trained_policy import TrainedPolicy

    plan = schedule(cfg)
    policy = TrainedPolicy(cfg, platform)
    lessons = Lessons(cfg, plan, platform, policy, policy.scores, packing_of(cfg))
    rollout = trajectories(plan.generation_batch_size, plan.num_generations)
    for t in rollout:
        t.reward, t.finish_reason = t.advantage, "length" if t.position % 3 == 1 and t.sample == 0 else "stop"
    lessons.prepare(rollout)
    for t in rollout:  # away from the present policy, so that ratios are clipped and weights bounded
        rng = random.Random(f"{t.position}/{t.sample}")
        now = t.old_logprobs or []
        t.old_logprobs = [x + rng.uniform(-0.3, 0.3) for x in now]
        t.ref_logprobs = [x + rng.uniform(-0.5, 0.5) for x in t.ref_logprobs or []]
        t.rollout_logprobs = [x + rng.uniform(-0.3, 0.3) for x in t.old_logprobs]
    lesson = lessons.lesson(rollout, used=plan.steps_per_generation + 1)  # the second step of the second pass
    policy.accumulate(lessons.batches(lesson), lesson.threshold)
    exporter = HfExporter(policy.chunks, platform.layer_spec, values=lambda p: p.main_grad)
    gradients = {name: value.clone().contiguous() for name, value in exporter.tensors()}
    values = policy.update(lessons.batches(lesson), lesson.threshold)
    values["loss"] += lesson.constant
    return gradients, values | {"threshold": lesson.threshold, "trained": float(len(lesson.trained))}


if __name__ == "__main__":
    main()
