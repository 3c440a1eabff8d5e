"""What is known about a run at one moment: a fold over its events, without any drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from grpo_hpc.observe.history import History, finite

STEP_PHASES = ("sync", "rollout", "reward", "offload", "logprob", "train")
_RECENT_STEPS = 12


@dataclass
class RunState:
    """The state of a run.

    Attributes:
        total_steps: optimizer steps of the whole run.
        history: metrics by step.
        done: optimizer steps made.
        phase: what the run is doing, a key of :data:`grpo_hpc.observe.metrics.PHASES`; empty before the first event.
        phase_since: when that began, in seconds since the epoch.
        progress: finished and all parts of the phase, when it reports them.
        started: time of the first event.
        step_since: when the present step began.
        messages: texts the run sent, newest last.
        outcome: empty while it runs, then ``finished``, ``stopped``, ``error``, or ``interrupted`` when none
            of them was reported.
        ended: time of the outcome.
        closing: lines to show when it is finished.
    """

    total_steps: int
    history: History = field(default_factory=History)
    done: int = 0
    phase: str = ""
    phase_since: float = 0.0
    progress: tuple[int, int] | None = None
    started: float | None = None
    step_since: float | None = None
    messages: list[str] = field(default_factory=list)
    outcome: str = ""
    ended: float = 0.0
    closing: list[str] = field(default_factory=list)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take note of ``event``; unknown kinds change nothing."""
        now = event["t"]
        if self.started is None:
            self.started = now
        match event["event"]:
            case "phase":
                self._enter(event["name"], event["step"], now)
            case "progress":
                self.progress = (event["done"], event["total"])
            case "metrics":
                self._measure(event["step"], event["values"], now)
            case "message":
                self.messages.append(event["text"])
            case "finished":
                lines = event["summary"].get("lines", [])
                self.closing = [str(line) for line in lines] if isinstance(lines, list) else []
                self._end("finished", now)
            case "stopped" | "error" as outcome:
                self._end(outcome, now)

    def close(self, now: float) -> None:
        """The run's processes are gone; without a reported outcome it counts as interrupted."""
        if not self.outcome:
            self._end("interrupted", now)

    def seconds_left(self, now: float) -> float | None:
        """How long the remaining steps will take, judged by the recent ones; None before the first step is made."""
        typical = self.typical_seconds()
        if typical is None:
            return None
        spent = now - self.step_since if self.step_since is not None else 0.0
        return max(0.0, typical * (self.total_steps - self.done) - min(spent, typical))

    def typical_seconds(self) -> float | None:
        """Length of a step, judged by the recent ones; None before the first step is made."""
        times = finite(self.history.series("time/step").values())[-_RECENT_STEPS:]
        return median(times) if times else None

    def step_seconds(self) -> float:
        """Length of the last step; 0 before there is one."""
        last = self.history.last("time/step")
        return last[1] or 0.0 if last is not None else 0.0

    def phase_times(self) -> dict[str, float]:
        """Seconds per phase of the last step, in the order of work."""
        last = self.history.last("time/step")
        if last is None:
            return {}
        spent = {phase: self.history.series(f"time/{phase}").get(last[0]) for phase in STEP_PHASES}
        return {phase: seconds for phase, seconds in spent.items() if seconds is not None}

    def _enter(self, phase: str, step: int, now: float) -> None:
        if step > 0 and step - 1 != self.done:  # resumed: the history may hold steps that will be made again
            self.done = step - 1
            self.history.forget_after(self.done)
        if self.step_since is None and phase not in ("start", "eval"):
            self.step_since = now
        self.phase, self.phase_since, self.progress = phase, now, None

    def _measure(self, step: int, values: Mapping[str, float | None], now: float) -> None:
        self.history.forget_after(step)
        self.history.add(step, values)
        self.step_since = None  # what comes next belongs to a new step
        if "time/step" in values:
            self.done = step

    def _end(self, outcome: str, now: float) -> None:
        self.outcome, self.ended, self.phase = outcome, now, ""
