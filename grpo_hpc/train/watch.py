"""What the trainer tells the outside: phases and their times, and whether somebody asked it to stop."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from grpo_hpc.control import Control
from grpo_hpc.observe.events import EventLog
from grpo_hpc.runs.attempt_hold import Hold
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.memory_meter import MemoryMeter


class PhaseClock:
    """Times the phases of a step and announces them; one rank writes, every rank keeps time."""

    def __init__(self, platform: Platform, events: EventLog | None) -> None:
        self._platform, self._events = platform, events
        self.memory = MemoryMeter(platform)
        self.step = 0
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A named part of a step; times of the same name add up until :meth:`take`."""
        if self._events:
            self._events.phase(name, self.step)
        started = time.perf_counter()
        yield
        self._platform.synchronize()
        self.memory.note(name)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def progress(self, done: int, total: int) -> None:
        """How far the present phase has come."""
        if self._events:
            self._events.progress(done, total)

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken


class StopRequest:
    """A wish to end early: a file in the run directory, or a signal to any rank. All ranks agree about it.

    Args:
        hold: the place of this attempt in the run directory, which the first rank looks after.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

    def __init__(self, file: Path, control: Control, hold: Hold | None = None) -> None:
        self._file, self._control, self._hold = file, control, hold
        self._signalled = False
        for number in self.SIGNALS:
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: object) -> None:
        self._signalled = True

    def heard(self) -> bool:
        """Whether this rank was asked, or knows of one that was; not collective, for the middle of a rollout."""
        if self._asked():
            self._control.say("stop")
        return self._control.said("stop")

    def agreed(self) -> bool:
        """True on every rank as soon as one rank was asked; collective.

        Raises:
            RunTaken: on every rank: the run directory is another attempt's now.
        """
        if not self._control.any(self._asked(), "all ranks to say whether the run shall stop"):
            return False
        self.require_hold()
        return True

    def require_hold(self) -> None:
        """Go on only while this attempt has the run directory; collective.

        Raises:
            RunTaken: on every rank: it does not.
        """
        check = self._hold.require if self._hold else _held
        self._control.from_first(check, "the first rank to look whether the run is still its own")

    def _asked(self) -> bool:
        return self._signalled or (self._control.first and (self._file.exists() or self._taken()))

    def _taken(self) -> bool:
        return bool(self._hold and self._hold.lost())


def _held() -> None:
    """Nobody can take the place of what is no attempt."""
