"""Trainer and engine on one GPU: carries out the moves that :mod:`grpo_hpc.rollout.residency` decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.rollout.engine import Engine
from grpo_hpc.rollout.residency import ENGINE, Part, Residency, Use
from grpo_hpc.train.megatron.offload import HostCopy
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy
from grpo_hpc.train.watch import PhaseClock


class Colocation:
    """Keeps on the GPU what the present use needs.

    Made before the engine, whose start then finds the room that a rollout will have.

    Args:
        reference: chunks of the reference model, which leave with the policy; empty without one.
    """

    def __init__(
        self,
        residency: Residency,
        platform: Platform,
        policy: TrainedPolicy,
        reference: Sequence[PolicyModel],
        clock: PhaseClock,
    ) -> None:
        self._residency, self._platform, self._policy, self._clock = residency, platform, policy, clock
        models = [*policy.chunks, *reference]
        gradients = HostCopy(lambda: _gradients(policy), keep=False)
        weights = HostCopy(lambda: [p.data for model in models for p in model.parameters()])
        state = HostCopy(lambda: (t for t in _optimizer_state(policy) if t.device.type == platform.device.type))
        self._copies = {Part.MODEL: (gradients, weights), Part.OPTIMIZER: (state,)}
        self._engine: Engine | None = None
        self._now = frozenset({Part.MODEL, Part.OPTIMIZER})
        self._move_out(self._now - residency.parts(Use.ROLLOUT))
        platform.empty_cache()  # an engine looks for free memory when it starts

    def attach(self, engine: Engine) -> None:
        """The engine has started, with weights and cache on the GPU."""
        self._engine = engine
        self._now |= ENGINE

    def enter(self, use: Use) -> None:
        """Make every part that ``use`` needs resident, and send away what is asked to leave."""
        moves = self._residency.moves(self._now, use)
        if not moves:
            return
        with self._clock.phase("offload"):
            self._move_out(frozenset(move.part for move in moves if not move.enters))
            for move in moves:
                if move.enters:
                    self._move_in(move.part)

    def _move_out(self, leaving: frozenset[Part]) -> None:
        if not leaving:
            return
        if self._engine is not None and leaving & ENGINE:
            self._engine.sleep()
        if Part.MODEL in leaving:
            self._policy.settle()
        for part in leaving - ENGINE:
            for copy in self._copies[part]:
                copy.leave()
        self._now -= leaving

    def _move_in(self, part: Part) -> None:
        if part in ENGINE:
            self._platform.empty_cache()  # what the trainer has only cached is not free for the engine
            if self._engine is not None:
                self._engine.wake(part)
        else:
            for copy in self._copies[part]:
                copy.back()
        self._now |= {part}


def _gradients(policy: TrainedPolicy) -> list[Tensor]:
    return [b.grad_data for chunk in policy.ddp for b in (*chunk.buffers, *chunk.expert_parallel_buffers)]


def _optimizer_state(policy: TrainedPolicy) -> list[Tensor]:
    """Moments and main parameters, where these are not the model's own."""
    own = {p.untyped_storage().data_ptr() for chunk in policy.chunks for p in chunk.parameters()}
    found: list[Tensor] = []
    for part in getattr(policy.optimizer, "chained_optimizers", [policy.optimizer]):
        inner: Any = part.optimizer
        found += [value for state in inner.state.values() for value in state.values() if isinstance(value, Tensor)]
        found += [p.data for group in inner.param_groups for p in group["params"]]
    return [tensor for tensor in found if tensor.untyped_storage().data_ptr() not in own]
