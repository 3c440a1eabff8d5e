"""Seconds of one rollout and the optimizer steps made from it, phase by phase, each part with what bounds it.

Rates come from the hardware profile. A part's time is what its slowest resource needs; parts of a phase follow one
after the other unless a run overlaps them. No total is scaled to fit a measurement, unless a person names the run to
plan like (:mod:`grpo_hpc.plan.measured`): formulas name what is assumed, and constants that were measured say on what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.rates import Part, Phase, Times, forward_flops
from grpo_hpc.plan.rollout_time import rollout
from grpo_hpc.plan.sample_traffic import sample_exchange
from grpo_hpc.plan.setup import Execution, Task
from grpo_hpc.plan.sync_time import offload, sync
from grpo_hpc.plan.train_time import logprob, training

Parts = Callable[[Task, Execution, Hardware], Sequence[Part]]


def estimate(task: Task, execution: Execution, hardware: Hardware) -> Times:
    """The time of a cycle on ``hardware``."""
    known = [name for name in _PHASES if name != "reward" or task.pace]
    phases = [Phase(name, phase_parts(name, task, execution, hardware)) for name in known]
    train = next(phase.parts for phase in phases if phase.name == "train")
    useful = 3 * sum(forward_flops(task, task.usual)) * task.completions * task.steps
    seconds = sum(part.seconds for part in train)
    mfu = useful / (seconds * execution.degrees.world * hardware.bf16_tflops * 1e12)
    return Times(tuple(phases), task.steps, task.generation * task.usual, execution.gpus, mfu)


def phase_parts(phase: str, task: Task, execution: Execution, hardware: Hardware) -> tuple[Part, ...]:
    """The parts of one phase, at the pace of the run that the task names where there is one."""
    parts = [part for parts in _PHASES[phase] for part in parts(task, execution, hardware)]
    factor = task.pace.factor(phase) if task.pace else 1.0
    if factor == 1.0 or task.pace is None:
        return tuple(parts)
    text = f" * {factor:.2f} as in {task.pace.run}"
    return tuple(replace(part, seconds=part.seconds * factor, formula=part.formula + text) for part in parts)


def phase_seconds(phase: str, task: Task, execution: Execution, hardware: Hardware) -> float:
    """Seconds of one phase of a cycle."""
    return sum(part.seconds for part in phase_parts(phase, task, execution, hardware))


def training_seconds(task: Task, execution: Execution, hardware: Hardware) -> float:
    """Seconds of a cycle without sampling and offload."""
    exchanged = sum(part.seconds for part in sample_exchange(task, execution, hardware))
    rest = ("sync", "reward", "logprob", "train")
    return exchanged + sum(phase_seconds(phase, task, execution, hardware) for phase in rest)


def _scoring(task: Task, execution: Execution, hardware: Hardware) -> list[Part]:
    """Known of a run that was measured, and of no other."""
    if task.pace is None or not task.pace.reward:
        return []
    each = task.generation / execution.degrees.world
    text = f"{each:g} completions of a rank at {task.pace.reward * 1e3:.3g} ms, as in {task.pace.run}"
    return [Part("scoring", task.pace.reward * each, "host", text)]


_PHASES: dict[str, tuple[Parts, ...]] = {
    "sync": (sync,),
    "rollout": (rollout, sample_exchange),
    "reward": (_scoring,),
    "logprob": (logprob,),
    "train": (training,),
    "offload": (offload,),
}
