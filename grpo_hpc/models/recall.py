"""What modules are told of a micro-batch, also when their layer is recomputed."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import torch

_Told = TypeVar("_Told")


class Recall(Generic[_Told]):
    """Gives one module what belongs to the micro-batch that it works on.

    A layer that is recomputed goes forward twice: without gradient when its micro-batch's turn comes, and with it in
    the backward pass, when another micro-batch may be going forward. Backward passes come in the order of forward
    passes, so what the module was told in the first ones waits in a queue.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Told] = deque()

    def __call__(self, now: _Told, training: bool) -> _Told:
        """What belongs to the present forward pass, ``now`` being that of the micro-batch whose turn it is."""
        if not training:
            return now
        if torch.is_grad_enabled():
            return self._waiting.popleft() if self._waiting else now
        self._waiting.append(now)
        return now
