"""The record of every start of a run: ``attempt_K/attempt.json``, and what it says about going on."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from grpo_hpc.errors import GrpoHpcError, of_system
from grpo_hpc.files import write_atomically
from grpo_hpc.redaction import redacted
from grpo_hpc.runs.records import read_record
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.saved_files import what_is_missing

State = Literal[
    "running",
    "success",
    "stopped",  # a person asked it to save and stop
    "cancelled",  # a person ended it
    "timeout",
    "preempted",
    "node_failure",
    "out_of_memory",
    "error",  # something that a person must mend; the trainer said what
    "preflight",  # the nodes failed the check; the reason names one
    "crash",
    "lost",  # it vanished, and nobody knows why
]
OVER: frozenset[State] = frozenset({"success", "stopped", "cancelled", "error", "out_of_memory"})
"""States after which another start by itself would be useless or against somebody's will."""
UNPROVOKED: frozenset[State] = frozenset({"preempted"})
"""States that say nothing against the run, so they cost nothing of its failure budget."""
RECORD = "attempt.json"
_AT_ONCE_S = 10


@dataclass(frozen=True)
class Attempt:
    """One start of a run.

    Attributes:
        submission: counts calls of ``submit`` and ``resume``; a later one overrules how an earlier one ended.
        job_id: Slurm's number of the job, None on this machine.
        restart: how often Slurm had restarted that job before.
        nodes: names, the first one also runs the supervisor.
        started, ended: seconds since the epoch.
        first_step, last_step: steps in the newest whole checkpoint at the start and at the end.
        reason: one line for people.
    """

    number: int
    submission: int
    executor: str
    job_id: str | None
    restart: int
    nodes: list[str]
    started: float
    first_step: int
    state: State = "running"
    reason: str = ""
    exit_code: int | None = None
    ended: float | None = None
    last_step: int = 0

    def end(self, run_dir: RunDir, state: State, reason: str, exit_code: int | None) -> Attempt:
        """The record of this attempt's end, written to its folder."""
        said, step = redacted(reason), saved_step(run_dir)
        ended = replace(self, state=state, reason=said, exit_code=exit_code, ended=time.time(), last_step=step)
        ended.write(run_dir)
        return ended

    def folder(self, run_dir: RunDir) -> Path:
        """Where its logs lie."""
        return run_dir.path / f"attempt_{self.number}"

    def write(self, run_dir: RunDir) -> None:
        """Write the record; on a full disk over the old one, whose block is there to be used."""
        path, text = self.folder(run_dir) / RECORD, json.dumps(asdict(self), indent=2) + "\n"
        try:
            write_atomically(path, text)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
                raise
            with path.open("r+", encoding="utf-8") as file:
                file.write(text)
                file.truncate()


def begin(
    run_dir: RunDir, executor: str, nodes: list[str], submission: int, job_id: str | None = None, restart: int = 0
) -> Attempt:
    """Make the folder and the record of the next start."""
    number = int(run_dir.new_attempt().name.removeprefix("attempt_"))
    attempt = Attempt(number, submission, executor, job_id, restart, nodes, time.time(), saved_step(run_dir))
    attempt.write(run_dir)
    return attempt


def history(run_dir: RunDir) -> list[Attempt]:
    """Every start so far, the oldest first; a record that cannot be read is passed over."""
    return sorted(_read(run_dir)[0], key=lambda attempt: attempt.number)


def damaged_attempts(run_dir: RunDir) -> list[str]:
    """What is wrong with the records that :func:`history` passes over, each in one line."""
    return _read(run_dir)[1]


def newest_unread(run_dir: RunDir) -> Path | None:
    """The record of the newest start, where it is one that :func:`history` passes over."""
    records = list(run_dir.path.glob(f"attempt_*/{RECORD}"))
    numbers = {path.parent.name.removeprefix("attempt_"): path for path in records}
    newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    read = history(run_dir)
    return numbers.get(str(newest)) if newest > (read[-1].number if read else 0) else None


def _read(run_dir: RunDir) -> tuple[list[Attempt], list[str]]:
    found, damaged = [], []
    for folder in sorted(run_dir.path.glob("attempt_*")):
        try:
            attempt = read_record(folder / RECORD, Attempt) if (folder / RECORD).is_file() else None
        except (GrpoHpcError, OSError) as error:
            damaged.append((of_system(error) if isinstance(error, OSError) else error).message)
            continue
        if attempt is not None and attempt.folder(run_dir) == folder:
            found.append(attempt)
        elif attempt is not None:
            damaged.append(f"{folder / RECORD} is the record of attempt {attempt.number}")
    return found, damaged


def failures_in_a_row(attempts: list[Attempt]) -> int:
    """Starts at the end of ``attempts`` that failed and saved nothing new; preempted ones are not counted."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.last_step > attempt.first_step or attempt.state == "success":
            break
        count += attempt.state not in UNPROVOKED
    return count


def fails_alike(attempts: list[Attempt]) -> bool:
    """The last two starts crashed within seconds and for the same reason, so that a third one would do so, too."""
    last = attempts[-2:]
    at_once = all(a.state == "crash" and a.ended is not None and a.ended - a.started < _AT_ONCE_S for a in last)
    return len(last) == 2 and at_once and last[0].reason == last[1].reason


def saved_step(run_dir: RunDir) -> int:
    """Steps in the newest checkpoint, 0 without one."""
    newest = newest_checkpoint(run_dir)
    return 0 if newest is None else _step(newest)


def newest_checkpoint(run_dir: RunDir) -> Path | None:
    """Folder of the newest checkpoint of which nothing is missing, as a resume would look for it."""
    return next(filter(_is_whole, named_checkpoints(run_dir)), None)


def named_checkpoints(run_dir: RunDir) -> list[Path]:
    """Folders of all checkpoints, the newest first, whole or not."""
    found = [path for path in run_dir.checkpoints.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return not what_is_missing(checkpoint)
    except OSError:
        return False


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))
