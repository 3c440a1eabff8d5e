"""Every place where a part of Megatron-Core is replaced, instead of being built from a specification.

A function here makes one change. Its decorator names what it relies on, and the versions of Megatron-Core that it was
read against; its docstring says why Megatron has no hook for it. A test finds every target in the installed version.
What Megatron builds from a specification is chosen in :func:`grpo_hpc.models.policy_model.layer_spec`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from megatron.core.tensor_parallel.random import CheckpointFunction, CheckpointWithoutOutput

from grpo_hpc.models.context import in_this_context

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Patch:
    """One change to Megatron-Core.

    Attributes:
        function: makes the change; its docstring says why.
        targets: ``module:Class.attribute`` that it relies on; the attribute may be one of instances.
        versions: of Megatron-Core that it was read against.
    """

    function: Callable[..., Any]
    targets: tuple[str, ...]
    versions: tuple[str, ...]


PATCHES: list[Patch] = []


def _patch(*targets: str, versions: tuple[str, ...] = ("0.16.1",)) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        PATCHES.append(Patch(function, targets, versions))
        return function

    return register


@_patch(
    "megatron.core.tensor_parallel.random:CheckpointFunction.forward",
    "megatron.core.tensor_parallel.random:CheckpointWithoutOutput.checkpoint",
)
@functools.cache
def recompute_in_context() -> None:
    """Compute again in the context of the micro-batch in which it was computed first; once per process.

    torch's own checkpointing takes a ``context_fn`` for this; Megatron's takes a function and tensors alone. A part of
    a layer that is recomputed (its experts, its feed-forward part) is not given the layer's other arguments either.
    """
    forward, checkpoint = CheckpointFunction.forward, CheckpointWithoutOutput.checkpoint

    def forward_in_context(ctx: Any, function: Callable[..., Any], *args: Any) -> Any:
        return forward(ctx, in_this_context(function), *args)

    def checkpoint_in_context(self: Any, function: Callable[..., Any], *args: Any) -> Any:
        return checkpoint(self, in_this_context(function), *args)

    CheckpointFunction.forward = staticmethod(forward_in_context)
    CheckpointWithoutOutput.checkpoint = checkpoint_in_context
