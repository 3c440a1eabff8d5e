"""The wall time of a whole run by what it did, evaluations, checkpoints and starts included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

_ENDS = ("finished", "stopped", "error")


def seconds_by_phase(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds between a phase's event and the next one, summed; phases in the order in which they first came.

    What lies before a new start is nobody's: the processes may have been gone for days. So is what lies behind the
    last event of a run that was killed.
    """
    marks = [event for event in events if event["event"] == "phase" or event["event"] in _ENDS]
    spent: dict[str, float] = {}
    for event, following in pairwise(marks):
        if event["event"] == "phase" and following.get("name") != "start":
            spent[event["name"]] = spent.get(event["name"], 0.0) + max(0.0, following["t"] - event["t"])
    return spent
