"""What completions take on their way from where they are sampled to where they are trained: host memory and seconds.

Every rank gets the summaries of all completions. The arrays of each go once, to the data-parallel rank that trains it,
and from there to the other ranks of that replica of the model. Lengths are taken at their average, because there are
many of them.
"""

from __future__ import annotations

import math

from grpo_hpc.plan.hardware import Hardware
from grpo_hpc.plan.rates import Part
from grpo_hpc.plan.setup import Execution, Task

SUMMARY = 136  # bytes of a completion's row of numbers, with a few reward functions
GLOO = 1e9  # bytes per second of one rank between hosts, over TCP; assumed, not measured
ROUND = 1e-4  # seconds of one round of a collective between hosts; assumed


def sample_bytes(task: Task) -> int:
    """Bytes of one completion's arrays.

    A token takes 4 B and 1 B of mask, a sampled one 8 B more for its log-probability and the version of the weights,
    and the experts of all but the last token a byte or two each, where the engine's routing is replayed.
    """
    routing = (task.usual - 1) * _routing(task) if task.router_replay == "R3" else 0
    return 5 * task.usual + 8 * task.average + 8 + routing


def held_bytes(task: Task) -> int:
    """The same on the ranks that train it, with the trainer's own log-probabilities and routing."""
    own = 4 * task.average * (task.old_logprobs + task.reference)
    return sample_bytes(task) + own + ((task.usual - 1) * _routing(task) if task.router_replay == "R2" else 0)


def sample_memory(task: Task, execution: Execution) -> tuple[int, str]:
    """Bytes on the host of a node while a rollout's completions travel, with the formula.

    What came and what leaves lie there twice: as arrays, and joined for the journey.
    """
    n, dp = execution.per_node, execution.degrees.dp
    samplers = _samplers(execution)
    trained, sampled = math.ceil(task.generation / dp), math.ceil(task.generation / samplers)
    owners = math.ceil(n * samplers / execution.degrees.world)
    size = n * (2 * trained * held_bytes(task) + task.generation * SUMMARY) + owners * 2 * sampled * sample_bytes(task)
    text = (
        f"{n} ranks * (2 * {trained:,} completions of {held_bytes(task):,} B + {task.generation:,} summaries of "
        f"{SUMMARY} B) + {owners} * 2 * {sampled:,} sampled"
    )
    return size, text


def sample_exchange(task: Task, execution: Execution, hw: Hardware) -> list[Part]:
    """Seconds until every completion of a rollout lies on the ranks that train it."""
    d = execution.degrees
    if d.world == 1:
        return []
    rate = min(GLOO, hw.nic_gb_per_s * 1e9)
    bound = "NIC" if execution.nodes > 1 else "host"
    told = task.generation * SUMMARY
    share, size = math.ceil(task.generation / d.dp), sample_bytes(task)
    moved = max(share, math.ceil(task.generation / _samplers(execution))) * size * (d.dp - 1) / d.dp
    copies = math.ceil(math.log2(d.world // d.dp))
    seconds = moved / rate + copies * share * size / rate + (d.world - 1) * ROUND
    text = (
        f"{share:,} completions of {size:,} B to each of {d.dp} data-parallel ranks"
        + (f", and {copies} times on to the {d.world // d.dp} ranks of its replica" if copies else "")
        + f"; {rate / 1e9:g} GB/s of a rank are assumed"
    )
    return [
        Part(
            "summaries", told / rate + (d.world - 1) * ROUND, bound, f"{told / 1e6:.1f} MB to each of {d.world} ranks"
        ),
        Part("completions", seconds, bound, text),
    ]


def _samplers(execution: Execution) -> int:
    """Ranks that completions lie on when they are sampled: one of each engine, or all that ask servers."""
    return execution.degrees.world if execution.server_nodes else max(1, execution.engines)


def _routing(task: Task) -> int:
    """Bytes of one token's experts in all layers."""
    e = task.shape.experts
    return len(task.shape.moe_layers) * e.topk * (1 if e.count <= 256 else 2) if e else 0
