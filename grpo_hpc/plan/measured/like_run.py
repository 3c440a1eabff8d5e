"""The pace of a run: what it measured, over what is planned for it when its own lengths are known."""

from __future__ import annotations

from collections.abc import Mapping

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import schedule
from grpo_hpc.errors import PlanError
from grpo_hpc.plan.make import make_plan
from grpo_hpc.plan.measured.pace import Lengths, Pace
from grpo_hpc.plan.rates import Times

_SEEN_S = 0.01
"""A phase of which less was planned or measured in a step says nothing about the next run."""


def pace_of(cfg: RunConfig, seconds: Mapping[str, float], lengths: Lengths) -> Pace:
    """The pace of the run ``cfg``.

    Args:
        seconds: of an optimizer step by phase, each phase's share of a rollout included, as in
            :data:`grpo_hpc.observe.state.STEP_PHASES`.

    Raises:
        PlanError: nothing can be learned from it for a plan.
    """
    own = Pace(cfg.name, lengths)
    times = _planned(cfg, own)
    factors = tuple(
        (phase.name, seconds[phase.name] * times.steps / phase.seconds)
        for phase in times.phases
        if phase.seconds > _SEEN_S * times.steps and seconds.get(phase.name, 0.0) > _SEEN_S
    )
    sizes = schedule(cfg)
    each = sizes.generation_batch_size / sizes.world_size
    return Pace(cfg.name, lengths, factors, seconds.get("reward", 0.0) * times.steps / each)


def _planned(cfg: RunConfig, pace: Pace) -> Times:
    if cfg.resources.device == "cpu":
        raise PlanError(f"the run {cfg.name} was on a CPU, and plans have times for GPUs alone")
    estimate = make_plan(cfg, pace=pace).estimate
    if estimate is None or estimate.times is None:
        raise PlanError(
            f"the model of the run {cfg.name} is not on this machine, so its plan cannot be compared with it",
            "Set model.config in its run.yaml to a copy of the model's config.json.",
        )
    return estimate.times
