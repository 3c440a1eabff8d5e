"""What may be deleted in a folder of runs, and deleting it: never anything of a run that waits or runs."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from grpo_hpc.errors import EnvironmentProblem, of_system
from grpo_hpc.observe.draw import duration
from grpo_hpc.runs.attempts import named_checkpoints
from grpo_hpc.runs.clearing.segments import segment_files, unused_segments
from grpo_hpc.runs.overview import overview
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import LIVE, Records, Standing, standings
from grpo_hpc.runs.start_lock import starting
from grpo_hpc.runs.sweep import Sweep, runs_at
from grpo_hpc.saved_files import what_is_missing

_OLD = re.compile(r".+\.old-[1-9][0-9]*")
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")
_DRAFT_S = 3600.0  # by then nobody makes a run directory any more
_DAY_S = 86400.0
_CUT_SHORT = "left by a command that was killed"


@dataclass(frozen=True)
class Wanted:
    """What may go besides what nobody needs.

    Attributes:
        days: runs that have not changed for so long, as a whole; None keeps them.
        checkpoints: newest whole checkpoints that are kept of runs that are over; None keeps all.
        node: Slurm's name of this machine, whose shared memory is looked at.
    """

    days: float | None
    checkpoints: int | None
    node: str


@dataclass(frozen=True)
class Leftover:
    """Something that may go.

    Attributes:
        why: in a few words.
        bytes: of all files in it.
        runs: those that must be idle for it.
    """

    path: Path
    why: str
    bytes: int
    runs: tuple[RunDir, ...]


@dataclass(frozen=True)
class Found:
    """What a folder holds for the broom; ``kept`` has path and reason of what is not touched though it may look so."""

    leftovers: list[Leftover]
    kept: list[tuple[str, str]]


def find_leftovers(folder: str | Path, wanted: Wanted) -> Found:
    """Look through a folder of runs, a run, or a sweep.

    Raises:
        ConfigError: there is no such folder, or a run that is named itself is damaged.
    """
    groups, found = _groups(Path(folder).absolute())
    damaged = {Path(path).parent for path, _ in found.kept}
    for place, runs in groups.items():
        _look_at(place, runs, wanted, found, whole=place not in damaged and not place.is_symlink())
    read = {path for runs in groups.values() for run in runs if _busy(run) for path in _read_by(run)}
    read_from = [left for left in found.leftovers if any(path.is_relative_to(left.path.resolve()) for path in read)]
    kept = [*found.kept, *((str(left.path), "a run that waits or runs reads from it") for left in read_from)]
    return Found(sorted((left for left in found.leftovers if left not in read_from), key=lambda left: left.path), kept)


def remove(left: Leftover) -> None:
    """Delete it, while nobody can start the runs that it belongs to.

    Raises:
        EnvironmentProblem: one of them waits or runs, or it cannot be deleted.
    """
    with starting(left.runs) if left.runs else nullcontext():
        try:
            if not left.path.is_dir() or left.path.is_symlink():
                left.path.unlink(missing_ok=True)
                return
            gone = left.path.rename(left.path.with_name(f".{left.path.name}.{uuid4().hex[:8]}"))
        except OSError as error:
            raise of_system(error) from None
    shutil.rmtree(gone, ignore_errors=True)
    if gone.exists():
        raise EnvironmentProblem(f"not all of {left.path} could be deleted; the rest is called {gone}")


def _groups(path: Path) -> tuple[dict[Path, Sequence[Standing]], Found]:
    """What belongs together, runs by themselves and those of a sweep, and what else was seen."""
    if (path / "run.yaml").is_file() or Sweep.at(path):
        return {path: standings([Records.read(run) for run in runs_at(str(path))])}, Found([], [])
    seen = overview(path)
    groups: dict[Path, Sequence[Standing]] = {Path(run.run_dir): [run] for run in seen.runs}
    groups |= {path / name: runs for name, runs in seen.sweeps.items() if runs}
    return groups, Found(list(_drafts(path)), [*seen.foreign])


def _look_at(place: Path, runs: Sequence[Standing], wanted: Wanted, found: Found, whole: bool) -> None:
    """A run, or all runs of a sweep, at ``place``; ``whole``: the place itself may go."""
    if busy := [run for run in runs if _busy(run)]:
        reason = busy[0].state if busy[0].known else f"nobody knows whether it runs ({busy[0].detail})"
        found.kept.append((str(place), f"{busy[0].name} is {reason}" if busy[0].known else reason))
        return
    idle, age = tuple(RunDir(run.run_dir) for run in runs), time.time() - max(run.changed for run in runs)
    if whole and _OLD.fullmatch(place.name):
        found.leftovers.append(Leftover(place, "moved away by --fresh", _size(place), idle))
    elif whole and wanted.days is not None and age > wanted.days * _DAY_S:
        found.leftovers.append(Leftover(place, f"unchanged for {duration(age)}", _size(place), idle))
    else:
        for run, standing in zip(idle, runs, strict=True):
            found.leftovers.extend(_inside(run, standing, wanted))


def _busy(run: Standing) -> bool:
    return run.state in LIVE or not run.known


def _read_by(run: Standing) -> Iterator[Path]:
    """Files and folders that a run reads, such as the export of another one."""
    cfg = RunDir(run.run_dir).config()
    for path in (cfg.model.path, cfg.data.train, cfg.data.eval, *cfg.rewards.files):
        if path:
            yield Path(path).resolve()


def _inside(run: RunDir, standing: Standing, wanted: Wanted) -> Iterator[Leftover]:
    checkpoints = named_checkpoints(run)
    complete = [path for path in checkpoints if _whole(path)]
    for path in sorted(run.checkpoints.glob("step_*.tmp")):
        yield Leftover(path, "a checkpoint that was never finished", _size(path), (run,))
    for path in sorted(run.checkpoints.glob("step_*.damaged")):
        if complete and path.stem <= complete[0].name:
            yield Leftover(path, "a damaged checkpoint; newer ones are whole", _size(path), (run,))
    kept = wanted.checkpoints
    if kept is not None and (kept or (standing.state == "success" and standing.export)):
        for path in complete[kept:]:
            yield Leftover(path, f"more than the {kept} newest checkpoints", _size(path), (run,))
    for path in (path for folder in (run.checkpoints, run.prompts.parent) for path in folder.glob(".*")):
        if _DRAFT.fullmatch(path.name):
            yield Leftover(path, _CUT_SHORT, _size(path), (run,))
    if run.prompts.is_dir():
        yield Leftover(run.prompts, "the data set as tokens, made anew when it is needed", _size(run.prompts), (run,))
    for file in segment_files(run, wanted.node):
        for path in unused_segments(file):
            yield Leftover(path, "shared memory of a server that was killed", _size(path), (run,))


def _drafts(folder: Path) -> Iterator[Leftover]:
    """Run directories whose making, or whose deletion, was cut short."""
    for path in folder.iterdir():
        if _DRAFT.fullmatch(path.name) and path.is_dir() and time.time() - path.stat().st_mtime > _DRAFT_S:
            yield Leftover(path, _CUT_SHORT, _size(path), ())


def _whole(checkpoint: Path) -> bool:
    try:
        return not checkpoint.is_symlink() and not what_is_missing(checkpoint)
    except OSError:
        return False


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files)
