"""Who is on the GPU when trainer and engine share it: a state machine without I/O.

Four parts take turns. The engine's weights and KV cache leave while the trainer works (``sleep_level``), the training
model and the optimizer state leave while the engine samples (``offload_model``, ``offload_optimizer``); what is not
asked to leave stays. A move out always comes before a move in, so the peak is that of the fuller phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Part(Enum):
    """What takes memory. ``MODEL`` is weights and gradients of the policy, and the reference model if there is one."""

    ENGINE_WEIGHTS = "engine weights"
    ENGINE_CACHE = "engine cache"
    MODEL = "model"
    OPTIMIZER = "optimizer"


ENGINE = frozenset({Part.ENGINE_WEIGHTS, Part.ENGINE_CACHE})


class Use(Enum):
    """What the GPU is used for: weights to the engine, sampling, or log-probabilities, updates and saving."""

    SYNC = "sync"
    ROLLOUT = "rollout"
    TRAIN = "train"


@dataclass(frozen=True)
class Move:
    """One part enters or leaves the GPU."""

    part: Part
    enters: bool


@dataclass(frozen=True)
class Residency:
    """Which parts are on the GPU in each use; the fields are keys of the run file's ``rollout`` section."""

    sleep_level: Literal[0, 1, 2] = 0
    offload_model: bool = False
    offload_optimizer: bool = False

    def parts(self, use: Use) -> frozenset[Part]:
        """What is on the GPU during ``use``."""
        wanted = {
            Use.SYNC: {Part.ENGINE_WEIGHTS, Part.MODEL},
            Use.ROLLOUT: {Part.ENGINE_WEIGHTS, Part.ENGINE_CACHE},
            Use.TRAIN: {Part.MODEL, Part.OPTIMIZER},
        }[use]
        stays = set() if self.sleep_level else {Part.ENGINE_WEIGHTS, Part.ENGINE_CACHE}
        stays |= set() if self.offload_model else {Part.MODEL}
        stays |= set() if self.offload_optimizer else {Part.OPTIMIZER}
        return frozenset(wanted | stays)

    def moves(self, now: frozenset[Part], use: Use) -> list[Move]:
        """How to get from ``now`` to ``use``: first what leaves, then what enters, each in a fixed order.

        The engine sleeps as a whole, so what is awake of it leaves together; its parts wake one by one. The cache is
        not there while weights are handed over: the training model is.
        """
        then = self.parts(use)
        leaving = now - then
        if leaving & ENGINE:
            leaving |= now & ENGINE
        entering = then - (now - leaving)
        leave = [Move(part, enters=False) for part in Part if part in leaving]
        return leave + [Move(part, enters=True) for part in Part if part in entering]
