"""Showing a run while it runs: a panel that redraws itself in a terminal, one line per step elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live

from grpo_hpc.observe.draw import duration
from grpo_hpc.observe.events import read_events
from grpo_hpc.observe.history import History
from grpo_hpc.observe.metrics import PHASES, lookup, reward_name
from grpo_hpc.observe.panel import render
from grpo_hpc.observe.state import RunState

_REDRAW_S = 0.5
_IN_LINE = ("reward/mean", "loss", "kl", "clip_ratio/region_mean", "completions/mean_length", "grad_norm", "time/step")
_RARE_PHASES = ("start", "eval", "save", "export")


class LiveView:
    """Follows the events of a run from the moment it is entered; what earlier starts of the run measured is shown too.

        with LiveView(events, metrics, total_steps, console) as view:
            while running:
                view.poll()

    Args:
        events_path: the run's events; the run is called like its folder.
        metrics_path: the run's metrics.
        total_steps: optimizer steps of the whole run.
        console: where to show it. What is printed to it meanwhile appears above the panel.
    """

    def __init__(self, events_path: str | Path, metrics_path: str | Path, total_steps: int, console: Console) -> None:
        self._events_path, self._metrics_path = Path(events_path), Path(metrics_path)
        self._name = self._events_path.absolute().parent.name
        self._console = console
        self._state = RunState(total_steps)
        self._offset = 0
        self._live: Live | None = None
        self._drawn = 0.0

    def __enter__(self) -> LiveView:
        self._state.history = History.read(self._metrics_path)
        self._offset = self._events_path.stat().st_size if self._events_path.exists() else 0
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state.close(time.time())
        if self._live is not None:
            self._draw()
            self._live.stop()
        for line in self._state.closing:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def poll(self) -> None:
        """Read what has happened since the last call and show it. Cheap; call it several times a second."""
        events, self._offset = read_events(self._events_path, self._offset)
        for event in events:
            self._state.apply(event)
            if self._live is None and (line := plain_line(self._state, event)):
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        if self._live is not None and (events or time.time() - self._drawn >= _REDRAW_S):
            self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._drawn = time.time()
            panel = render(self._state, self._name, self._drawn, self._console.width, self._console.height)
            self._live.update(panel, refresh=True)


def plain_line(state: RunState, event: dict[str, Any]) -> str:
    """What a log file should say about ``event``, after ``state`` has taken note of it; empty for nothing."""
    match event["event"]:
        case "phase" if event["name"] in _RARE_PHASES:
            return PHASES[event["name"]]
        case "metrics" if "time/step" in event["values"]:
            return _step_line(state, event)
        case "metrics":
            found = [
                f"{reward_name(name)} {_shown(name, value)}"
                for name, value in event["values"].items()
                if name.startswith("eval/") and name.endswith("/mean")
            ]
            when = f"after step {event['step']}" if event["step"] else "before training"
            return f"held out, {when}:  {'  '.join(found)}" if found else ""
        case "message":
            return str(event["text"])
    return ""


def _step_line(state: RunState, event: dict[str, Any]) -> str:
    values = event["values"]
    parts = [f"{_label(name)} {_shown(name, values[name])}" for name in _IN_LINE if name in values]
    left = state.seconds_left(event["t"])
    count = f"step {event['step']:>{len(str(state.total_steps))}}/{state.total_steps}"
    return "  ".join([count, *parts, *([f"about {duration(left)} left"] if left else [])])


def _label(name: str) -> str:
    metric = lookup(name)
    return metric.label if metric is not None and name != "time/step" else "in"


def _shown(name: str, value: float | None) -> str:
    metric = lookup(name)
    return metric.show(value) if metric is not None else str(value)
