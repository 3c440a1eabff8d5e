"""The place of an attempt in its run directory: what its processes hold while they run, and stop without.

Attempts are counted, and a folder is made by one process alone on every file system: whoever has made ``attempt_K+1``
has taken the place of attempt K. So there is no lock to remove, and none that could stay behind.
"""

from __future__ import annotations

import json
import os
import time

from grpo_hpc.errors import RunTaken
from grpo_hpc.runs.attempts import RECORD, Attempt, history
from grpo_hpc.runs.run_dir import RunDir

VARIABLE = "GRPO_HPC_ATTEMPT"
_AGAIN_S = 0.5


class Hold:
    """The place of ``attempt`` in ``run_dir``."""

    def __init__(self, run_dir: RunDir, attempt: Attempt) -> None:
        self._record = attempt.folder(run_dir) / RECORD
        self._next = run_dir.path / f"attempt_{attempt.number + 1}"
        self._attempt = attempt
        self._lost = ""

    @classmethod
    def here(cls, run_dir: RunDir) -> Hold | None:
        """The place of the attempt that this process belongs to by its environment; None where it belongs to none."""
        number = os.environ.get(VARIABLE)
        return next((cls(run_dir, known) for known in history(run_dir) if str(known.number) == number), None)

    def lost(self) -> str:
        """Who has taken the place, in a sentence; empty while it is held. Costs two look-ups in a folder."""
        if not self._lost and self._look():
            time.sleep(_AGAIN_S)  # a file system that replaces a file may not show it for a moment
            self._lost = self._look()
        return self._lost

    def require(self) -> None:
        """Go on only while the place is held.

        Raises:
            RunTaken: it was taken.
        """
        if why := self.lost():
            raise RunTaken(
                f"attempt {self._attempt.number} has lost its run directory: {why}",
                "It ends here, and writes nothing more.",
            )

    def _look(self) -> str:
        try:
            record = json.loads(self._record.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return f"{self._record} is gone"
        except (OSError, ValueError):  # a file system that stumbles takes nothing away
            return ""
        if record.get("started") != self._attempt.started:
            return f"{self._record} is that of another run"
        if self._next.exists():
            return f"{self._next.name} has begun"
        return "" if record.get("state") == "running" else f"its end was recorded by others ({record.get('state')})"
