"""How far off the planner's estimates were where somebody had measured."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from grpo_hpc.config.document import read_yaml

FILE = Path(__file__).with_name("accuracy.yaml")


@cache
def accuracy(eager: bool) -> str:
    """One sentence for the reader of an estimate; docs/planner.md leads to the runs behind it.

    Args:
        eager: vLLM works without CUDA graphs: then the host sets its pace, and hosts differ.
    """
    found = read_yaml(FILE, "table of measured errors", "time: {}").values
    time, memory = found["time_eager" if eager else "time"], found["memory"]
    return (
        f"How far off: step times {_span(time)} on {_runs(time)} {'without' if eager else 'with'} CUDA graphs in vLLM, "
        f"peak memory {_span(memory)} on {_runs(memory)} (negative: the estimate is too low)."
    )


def _span(errors: dict[str, float]) -> str:
    ends = sorted({f"{errors[end]:+.0%}" for end in ("lowest", "highest")}, reverse=True)
    return " to ".join(ends)


def _runs(errors: dict[str, float]) -> str:
    return f"{errors['runs']} measured run" + ("s" if errors["runs"] != 1 else "")
