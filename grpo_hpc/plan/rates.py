"""Pieces that estimates of time are made of: parts, phases, operations of a forward pass, and links between ranks."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_hpc.models.flops import sequence_cost
from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.setup import Execution, Task


@dataclass(frozen=True)
class Part:
    """One part of a phase.

    Attributes:
        bound: ``tensor cores``, ``HBM``, ``NVLink``, ``NIC``, ``PCIe`` or ``host``.
        formula: what it is made of, with numbers and assumptions.
    """

    name: str
    seconds: float
    bound: str
    formula: str


@dataclass(frozen=True)
class Phase:
    """One phase of a rollout's cycle, over all its optimizer steps."""

    name: str
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def bound(self) -> str:
        """What bounds the longest part."""
        return max(self.parts, key=lambda part: part.seconds).bound if self.parts else "-"


@dataclass(frozen=True)
class Times:
    """A whole cycle: one rollout and the optimizer steps made from it.

    Attributes:
        tokens: prompt and completion tokens of the rollout, at average length.
        mfu: share of the data sheet's matrix rate that the train phase uses, recomputation not counted.
    """

    phases: tuple[Phase, ...]
    steps: int
    tokens: int
    gpus: int
    mfu: float

    def seconds(self, phase: str) -> float:
        """Of the phase of that name."""
        return next(found.seconds for found in self.phases if found.name == phase)

    @property
    def cycle(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def step(self) -> float:
        """Seconds of a step, its share of the rollout included."""
        return self.cycle / self.steps

    @property
    def rate(self) -> float:
        """Tokens per second and GPU, over the whole cycle."""
        return self.tokens / self.cycle / self.gpus


def forward_flops(task: Task, tokens: int) -> tuple[float, float]:
    """Forward operations of one sequence: matrix products, and attention over the causal half of its score matrix."""
    cost = sequence_cost(task.shape)
    return cost.linear * tokens + cost.head * min(tokens, task.average), cost.quadratic * tokens**2


def forward_seconds(task: Task, tokens: int, hw: Hardware) -> float:
    """Seconds of one sequence's forward operations on one GPU."""
    matrices, attention = forward_flops(task, tokens)
    experts = 0.0
    if (e := task.shape.experts) is not None:
        experts = 2.0 * len(task.shape.moe_layers) * e.topk * task.counts.expert * tokens
    rate = hw.bf16_tflops * 1e12
    dense = (matrices - experts) / (rate * hw.matmul_efficiency)
    return dense + experts / (rate * hw.grouped_efficiency) + attention / (rate * hw.attention_efficiency)


def link_of(execution: Execution, hw: Hardware, reach: int) -> tuple[float, str]:
    """Bytes per second between ``reach`` neighbouring ranks, and what they go through."""
    rack = hw.nvlink_domain if hw.nvlink_domain > 8 else 0  # a domain wider than a node joins the nodes of a rack
    if reach <= min(max(execution.per_node, rack), hw.nvlink_domain):
        return hw.nvlink_gb_per_s * 1e9, "NVLink"
    return hw.nic_gb_per_s * 1e9, "NIC"
