"""What modules must know of the micro-batch that they work on.

It is given to the model with the forward call, and is the current one while that call runs. What is computed again in
the backward pass runs under the context in which it was computed first (:func:`grpo_hpc.models.patches.
recompute_in_context`), so it does not matter in which order a schedule takes forward and backward passes.

Shapes: T tokens of a row on this rank, t of them that this rank has between layers, S sequences, L layers with experts
(of the whole model), k experts per token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")

Record = Callable[[int, int, Tensor], None]
"""Is told the number of a micro-batch, the number of a layer with experts, and the experts [t, k] it chose."""


@dataclass(frozen=True)
class RoutedTokens:
    """What routers must know of a micro-batch.

    Attributes:
        sequence: [t], number of each token's sequence; S for padding.
        lengths: [S], tokens of each sequence on all ranks together.
        experts: [t, L, k], integers of any size: where tokens must go; None lets the router choose.
    """

    sequence: Tensor
    lengths: Tensor
    experts: Tensor | None = None

    @cached_property
    def real(self) -> Tensor:
        """[t], whether a token is no padding."""
        return self.sequence < len(self.lengths)

    @cached_property
    def share(self) -> Tensor:
        """[t], one over the length of the token's sequence; 0 for padding."""
        return torch.cat([1.0 / self.lengths, self.lengths.new_zeros(1)])[self.sequence]


@dataclass(frozen=True)
class MicroBatchContext:
    """One micro-batch, as modules see it.

    Attributes:
        number: of the micro-batch, in the order in which this rank takes them.
        step: a number for the optimizer step.
        token_numbers: [T], a number for each token, padding included; dropout depends on it.
        routed: what routers must know; None in a model without experts.
        record: where free choices of experts are written down; None where nobody asks.
    """

    number: int
    step: int
    token_numbers: Tensor
    routed: RoutedTokens | None = None
    record: Record | None = None


_current: ContextVar[MicroBatchContext | None] = ContextVar("micro_batch_context", default=None)


def current_context() -> MicroBatchContext | None:
    """The micro-batch whose forward pass, first or repeated, is running in this thread; None outside of one."""
    return _current.get()


@contextlib.contextmanager
def entered(context: MicroBatchContext | None) -> Iterator[None]:
    """Inside, ``context`` is the current one."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def in_this_context(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """``function``, which runs under the context of now whenever it is called, and in whichever thread."""
    context = _current.get()

    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        with entered(context):
            return function(*args, **kwargs)

    return run
