"""What happens in a run, as it happens: the trainer writes events, the launcher and the live view follow them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_hpc.observe.history import is_step
from grpo_hpc.observe.jsonl import JsonLines, number, read_from
from grpo_hpc.redaction import redacted

PROGRESS_S = 1.0
"""Seconds between two notes of progress: each opens a file that may lie on a network."""


_FIELDS: dict[str, dict[str, type]] = {
    "phase": {"name": str, "step": int},
    "progress": {"done": int, "total": int},
    "metrics": {"step": int, "values": dict},
    "message": {"text": str},
    "error": {"kind": str, "message": str, "hint": str},
    "finished": {"summary": dict},
    "stopped": {"step": int},
}


class EventLog:
    """Appends events, each with its time ``t`` (seconds since the epoch) and its kind ``event``.

    Args:
        path: the file; several processes may write to it.
    """

    def __init__(self, path: str | Path) -> None:
        self._lines = JsonLines(path)
        self._told = -PROGRESS_S

    def phase(self, name: str, step: int) -> None:
        """Phase ``name`` of optimizer step ``step`` begins."""
        self._write("phase", name=name, step=step)

    def progress(self, done: int, total: int) -> None:
        """``done`` of ``total`` parts of the present phase are finished; what follows too soon is left out."""
        now = time.monotonic()
        if now - self._told >= PROGRESS_S:
            self._told = now
            self._write("progress", done=done, total=total)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of step ``step``; names as in :data:`grpo_hpc.observe.metrics.METRICS`."""
        self._write("metrics", step=step, values=dict(values))

    def message(self, text: str) -> None:
        """Something worth a line."""
        self._write("message", text=redacted(text))

    def error(self, kind: str, message: str, hint: str) -> None:
        """The run ends because of something that a person can mend."""
        self._write("error", kind=kind, message=redacted(message), hint=redacted(hint))

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run is complete; ``summary["lines"]`` is shown as it is."""
        self._write("finished", summary=dict(summary))

    def stopped(self, step: int) -> None:
        """The run ended on request after ``step`` steps, with everything saved."""
        self._write("stopped", step=step)

    def _write(self, event: str, **fields: Any) -> None:
        self._lines.write([{"t": round(time.time(), 3), "event": event, **fields}])


def read_events(path: str | Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events after byte ``offset`` and the offset to go on from; a half-written last line is left for the next call.

    Values of metrics that are no numbers become None; what is no event of :class:`EventLog` is passed over.
    """
    records, offset = read_from(path, offset)
    return [_with_numbers(record) for record in records if _is_sound(record)], offset


def _is_sound(record: dict[str, Any]) -> bool:
    kind = record.get("event")
    if not isinstance(kind, str) or number(record.get("t")) is None:
        return False
    return all(
        is_step(record.get(name)) if wanted is int else isinstance(record.get(name), wanted)
        for name, wanted in _FIELDS.get(kind, {}).items()
    )


def _with_numbers(event: dict[str, Any]) -> dict[str, Any]:
    if event["event"] != "metrics":
        return event
    return {**event, "values": {name: number(value) for name, value in event["values"].items()}}
