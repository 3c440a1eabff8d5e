"""The figures of a ``plan.json`` that a run can be held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_hpc.errors import ConfigError
from grpo_hpc.observe.jsonl import number
from grpo_hpc.runs.records import DAMAGE

_GIB = 2**30


@dataclass(frozen=True)
class PlannedFigures:
    """What was planned; empty where the plan had no estimate of it.

    Attributes:
        seconds: of an optimizer step, its share of the rollout included, by phase, and of the whole ``step``.
        gib: of the fullest device, by phase.
        average_completion: tokens.
        memory_gib: of a GPU.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    gib: dict[str, float] = field(default_factory=dict)
    average_completion: float | None = None
    memory_gib: float | None = None

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> PlannedFigures:
        """Those of a plan as :meth:`grpo_hpc.plan.make.Plan.to_dict` writes it.

        Raises:
            ConfigError: it is no such plan.
        """
        try:
            estimate = plan["estimate"]
            if estimate is None:
                return cls()
            phases = estimate["memory"]["phases"]
            return cls(
                _seconds(estimate["time"]),
                {str(name): sum(term["bytes"] for term in terms) / _GIB for name, terms in phases.items()},
                number(estimate["average_completion"]),
                None if estimate["hardware"] is None else number(estimate["hardware"]["memory_gib"]),
            )
        except DAMAGE as error:
            raise ConfigError(f"plan.json is damaged: {type(error).__name__}: {error}") from None


def _seconds(time: Mapping[str, Any] | None) -> dict[str, float]:
    """The plan has seconds of a whole cycle: of a rollout and the steps made from it."""
    if time is None:
        return {}
    share = time["step"] / time["cycle"]
    phases = {str(name): share * sum(part["seconds"] for part in parts) for name, parts in time["phases"].items()}
    return {**phases, "step": float(time["step"])}
