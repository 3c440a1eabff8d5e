"""What the check of the nodes found, read from the reports of :mod:`grpo_hpc.jobs.checks.check_node`."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.cluster.profile import Floors
from grpo_hpc.config import RunConfig
from grpo_hpc.runs.log_ends import ends_of

TOOK_TOO_LONG = 124
"""Exit code that stands for a check that was ended, as timeout(1) has it."""


_NO_NODE = "no node by itself"


@dataclass(frozen=True)
class BadNode:
    """A node that a run cannot use, and why, in one line.

    Attributes:
        node: None where something is wrong and no node is known to be the one.
    """

    node: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}" if self.node else f"{_NO_NODE}: {self.reason}"


def server_nodes(cfg: RunConfig) -> int:
    """Nodes of vLLM servers, which come after those that train."""
    return cfg.rollout.vllm_server_nodes if cfg.rollout.vllm_mode == "server" else 0


def this_node() -> str:
    """Slurm's name of the node that this process runs on, or the machine's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def report_path(attempt: Path, node: str) -> Path:
    """Where the check on ``node`` writes what it found."""
    return attempt / "check" / f"{node}.json"


def bad_node(attempt: Path, nodes: list[str], cfg: RunConfig, floors: Floors, code: int) -> BadNode | None:
    """The first node with something wrong; None when all is well.

    Args:
        attempt: folder of the attempt.
        code: exit code of the check's step, or ``TOOK_TOO_LONG``.
    """
    reports = {node: _read(report_path(attempt, node)) for node in nodes}
    needed = cfg.resources.nodes + server_nodes(cfg)
    if len(nodes) != needed:
        return BadNode(None, f"the job has {len(nodes)} nodes, the run needs {needed}")
    return next((found for found in _problems(reports, cfg, floors, code, attempt) if found), None)


def _problems(
    reports: dict[str, dict[str, Any]], cfg: RunConfig, floors: Floors, code: int, attempt: Path
) -> Iterator[BadNode | None]:
    """Findings, those first that explain others."""
    for node, report in reports.items():
        if not report and code == 0:
            yield BadNode(node, f"what it writes into {attempt / 'check'} is not seen elsewhere: it is not shared")
    for node, report in reports.items():
        for problem in report.get("problems", []):
            yield BadNode(node, problem)
    for node, report in reports.items():
        if not report:
            yield BadNode(node, f"no report; it cannot start the image or write {attempt / 'check'}{_last(attempt)}")
    clocks = {node: float(report["clock"]) for node, report in reports.items() if "clock" in report}
    in_order = sorted(clocks, key=lambda node: clocks[node])
    middle = in_order[(len(in_order) - 1) // 2] if in_order else ""
    for node, report in reports.items():
        if "free_gib" in report:
            for folder, free in report["free_gib"].items():
                if free < floors.free_gib:
                    yield BadNode(node, f"{folder} has {free:.1f} GiB free, {floors.free_gib:g} are needed")
        if node in clocks and abs(off := clocks[node] - clocks[middle]) > floors.clock_skew_s:
            yield BadNode(node, f"its clock is {off:+.1f} s off that of {middle}")
    first = next(iter(reports))
    speed = reports[first].get("bandwidth_gbps")
    if speed is None:
        how = "timed out" if code == TOOK_TOO_LONG else f"failed (exit code {code})"
        yield BadNode(_missing(reports), f"the all-reduce over all ranks {how}{_last(attempt)}")
    elif speed < floors.bandwidth_gbps:
        slow = min(reports, key=lambda node: float(reports[node].get("local_gbps", 0.0)))
        within = f" (within this node {reports[slow].get('local_gbps', 0.0):.2f}, the least of all)"
        said = f"all-reduce over all ranks at {speed:.2f} GB/s, the profile demands {floors.bandwidth_gbps:g}"
        yield BadNode(slow, said + (within if len(reports) > 1 else ""))


def _missing(reports: dict[str, dict[str, Any]]) -> str | None:
    """The node without which the others could not reduce; None when it cannot be told.

    One that did not come to the meeting, else one that did not get through it while others did. When all came and none
    got through, the network between them is at fault, or any of them.
    """
    for sign in ("arrived", "joined"):
        missing = [node for node, report in reports.items() if not report.get(sign)]
        if 0 < len(missing) < len(reports):
            return missing[0]
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _last(attempt: Path) -> str:
    """The last line that the step wrote, which mostly is the reason."""
    lines = ends_of(attempt / "check.log").split("\n")
    said = [line.strip() for line in lines if "error" in line.lower() or "FATAL" in line]
    return f": {said[0][:200]}" if said else ""
