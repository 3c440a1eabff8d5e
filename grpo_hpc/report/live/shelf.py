"""What the server shows: the runs of one folder, by names that lead nowhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from grpo_hpc.errors import ConfigError
from grpo_hpc.report.recorded_run import RecordedRun, read_runs
from grpo_hpc.runs.overview import comparison, overview
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import Standing
from grpo_hpc.runs.sweep import Sweep

FRESH_S, FRESH_TIMES = 3.0, 10.0
"""Seconds for which an answer holds, or times as long as it took: however many windows ask and runs there are, the
disk and Slurm are left alone for most of the time."""
_SHOWN = 120  # rewards of a run in the list
Answer = TypeVar("Answer")


class Shelf:
    """The runs of a folder, those of a sweep, or one run. Safe for threads, which read one after another.

    Args:
        folder: what somebody wants to look at.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder).absolute()
        if not path.is_dir():
            raise ConfigError(f"there is no folder {folder}", "Runs lie in the folder that output_dir names.")
        self.only = path.name if (path / "run.yaml").is_file() else None
        self.folder = path.parent if self.only else path
        self._lock = threading.Lock()
        self._known: dict[object, tuple[float, Any]] = {}  # until when an answer holds, and the answer

    def run(self, name: str) -> RunDir:
        """The run of this name: that of its folder, behind the name of its sweep where it belongs to one.

        Raises:
            ConfigError: there is none.
        """
        parts = name.split("/")
        plain = all(part and not part.startswith(".") and part == Path(part).name for part in parts)
        if not plain or "\0" in name or len(parts) > 2 or self.only not in (None, name):
            raise ConfigError(f"{name!r} is no run of {self.folder}")
        return RunDir.open(self.folder / name)

    def runs(self, names: Sequence[str]) -> tuple[list[RecordedRun], list[tuple[str, str]]]:
        """What the runs of these names have recorded, in this order, and path and reason of those that are damaged.

        Raises:
            ConfigError: one is none of the folder, or none can be read.
        """
        paths = [str(self.run(name).path) for name in names]
        return self._fresh(tuple(names), lambda: read_runs(paths))

    def name_of(self, run: RecordedRun) -> str:
        """What :meth:`run` knows it by."""
        return run.run_dir.path.relative_to(self.folder).as_posix()

    def listing(self) -> dict[str, Any]:
        """All runs with how they stand, and what lies there that is none."""
        return self._fresh(None, self._listing)

    def _listing(self) -> dict[str, Any]:
        if self.only:
            found, _ = read_runs([str(self.folder / self.only)])
            return {"folder": str(self.folder), "runs": [self._entry(found[0].standing)], "passed_over": []}
        sweep = Sweep.at(self.folder)
        if sweep:
            compared = comparison(sweep)
            runs, over = compared.runs, compared.damaged
        else:
            seen = overview(self.folder)
            runs, over = [*seen.runs, *(run for group in seen.sweeps.values() for run in group)], seen.foreign
        entries = [self._entry(run) for run in runs]
        return {"folder": str(self.folder), "runs": entries, "passed_over": [list(one) for one in over]}

    def _entry(self, stand: Standing) -> dict[str, Any]:
        path = Path(stand.run_dir).relative_to(self.folder)
        kept = ("state", "detail", "step", "total_steps", "reward", "changed", "seconds_left", "phase")
        every = max(1, len(stand.rewards) // _SHOWN)
        facts = {name: getattr(stand, name) for name in kept}
        return {"name": path.as_posix(), "rewards": stand.rewards[::every], **facts}

    def _fresh(self, key: object, read: Callable[[], Answer]) -> Answer:
        """What ``read`` found a moment ago, or finds now."""
        with self._lock:
            begun = time.monotonic()
            self._known = {one: found for one, found in self._known.items() if begun < found[0]}
            if key not in self._known:
                found = read()
                ended = time.monotonic()
                self._known[key] = ended + max(FRESH_S, FRESH_TIMES * (ended - begun)), found
            answer: Answer = self._known[key][1]
            return answer
