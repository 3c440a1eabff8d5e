"""Seconds of one rollout and the optimizer steps made from it, phase by phase, each part with what bounds it.

Rates come from the hardware profile. A part's time is what its slowest resource needs; parts of a phase follow one
after the other unless a run overlaps them. No total is scaled to fit a measurement: formulas name what is assumed, and
constants that were measured say on what.
"""

from __future__ import annotations

from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.rates import Phase, Times, forward_flops
from grpo_hpc.plan.rollout_time import rollout
from grpo_hpc.plan.sample_traffic import sample_exchange
from grpo_hpc.plan.setup import Execution, Task
from grpo_hpc.plan.sync_time import offload, sync
from grpo_hpc.plan.train_time import logprob, training


def estimate(task: Task, execution: Execution, hardware: Hardware) -> Times:
    """The time of a cycle on ``hardware``."""
    train = training(task, execution, hardware)
    phases = [
        Phase("sync", tuple(sync(task, execution, hardware))),
        Phase("rollout", (*rollout(task, execution, hardware), *sample_exchange(task, execution, hardware))),
        Phase("logprob", tuple(logprob(task, execution, hardware))),
        Phase("train", tuple(train)),
        Phase("offload", tuple(offload(task, execution, hardware))),
    ]
    useful = 3 * sum(forward_flops(task, task.usual)) * task.completions * task.steps
    seconds = sum(part.seconds for part in train)
    mfu = useful / (seconds * execution.degrees.world * hardware.bf16_tflops * 1e12)
    return Times(tuple(phases), task.steps, task.generation * task.usual, execution.gpus, mfu)


def training_seconds(task: Task, execution: Execution, hardware: Hardware) -> float:
    """Seconds of a cycle without sampling and offload."""
    parts = [
        *sample_exchange(task, execution, hardware),
        *sync(task, execution, hardware),
        *logprob(task, execution, hardware),
        *training(task, execution, hardware),
    ]
    return sum(part.seconds for part in parts)
