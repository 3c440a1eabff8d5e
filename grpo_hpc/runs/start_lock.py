"""The lock under which a run is looked at and started, so that of several commands one alone starts it.

``.start.lock`` in the run directory is made with ``O_EXCL``, which every shared file system knows, also one without
flock. It is held while somebody asks how the run stands, hands it to its executor and writes down the job, or begins an
attempt: for seconds. A lock whose process is dead, or of another machine and older than :data:`STALE_S`, is taken over.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from uuid import uuid4

from grpo_hpc.errors import EnvironmentProblem, GrpoHpcError
from grpo_hpc.runs.holder import Holder
from grpo_hpc.runs.records import read_record
from grpo_hpc.runs.run_dir import RunDir, short_path
from grpo_hpc.runs.standing import LIVE, Records, Standing, standings

FILE = ".start.lock"
STALE_S = 300.0
WAIT_S = STALE_S + 60
_POLL_S = 0.2
_TELL_S = 3.0


@contextmanager
def starting(run_dirs: Sequence[RunDir]) -> Iterator[None]:
    """Inside nobody else starts one of ``run_dirs``, and none of them waits or runs.

    Raises:
        EnvironmentProblem: one of them does, or it cannot be known, or somebody else keeps the lock.
    """
    with locked(run_dirs):
        require_idle(run_dirs)
        yield


@contextmanager
def locked(run_dirs: Sequence[RunDir], wait_s: float = WAIT_S) -> Iterator[None]:
    """Inside nobody else starts, cancels or moves away one of ``run_dirs``.

    Raises:
        EnvironmentProblem: the lock of one is not free within ``wait_s`` seconds, or cannot be written.
    """
    with ExitStack() as held:
        for run_dir in sorted(run_dirs, key=lambda run_dir: run_dir.path):  # in one order, or two would wait for ever
            held.enter_context(_lock(run_dir.path / FILE, wait_s))
        yield


def require_idle(run_dirs: Sequence[RunDir]) -> None:
    """Refuse runs that wait or run, or of which that is not known.

    Raises:
        EnvironmentProblem: names the first one and what to do.
    """
    for found in standings([Records.read(run_dir) for run_dir in run_dirs]):
        if not found.known:
            raise EnvironmentProblem(
                f"whether the run {found.name} still waits or runs is not known ({found.detail})",
                "Two trainers would spoil it, so nothing was started. Ask again where the answer can be had.",
            )
        if found.state in LIVE:
            path = quote(short_path(found.run_dir))
            raise EnvironmentProblem(
                f"the run {found.name} is {found.state} ({_holder(found)})", f"Cancel it first: grpo-hpc cancel {path}"
            )


def move_away(run_dir: RunDir) -> None:
    """Give a run that neither waits nor runs, or whatever else holds its path, the name of an old one.

    Raises:
        EnvironmentProblem: it waits or runs.
    """
    if not run_dir.run_file.is_file():
        run_dir.path.rename(run_dir.old_path())
        return
    with starting([run_dir]):
        moved = run_dir.path.rename(run_dir.old_path())
        (moved / FILE).unlink(missing_ok=True)


def _holder(found: Standing) -> str:
    if found.job_ids:
        return f"job {found.job_ids[-1]}" if len(found.job_ids) == 1 else f"jobs {', '.join(found.job_ids)}"
    return found.detail or f"on {', '.join(found.nodes)}"


@contextmanager
def _lock(path: Path, wait_s: float) -> Iterator[None]:
    mine = json.dumps({**asdict(Holder.present()), "token": uuid4().hex}) + "\n"
    deadline = time.monotonic() + wait_s
    tell = time.monotonic() + _TELL_S
    while not _made(path, mine):
        if (held := _read(path)) is not None:
            if time.monotonic() > min(deadline, tell):
                _say_who_holds(path, final=time.monotonic() > deadline)
                tell = deadline
            _take_over(path, held)
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def _say_who_holds(path: Path, final: bool) -> None:
    what = f"the run {path.parent.name} is being started, cancelled or moved by {_owner(path) or 'somebody'}"
    if final:
        raise EnvironmentProblem(what, f"If that is not so any more, delete {path}.")
    with suppress(OSError):
        print(f"{what}; waiting for it", file=sys.stderr, flush=True)


def _made(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be made: {error.strerror}") from None
    try:
        os.write(descriptor, text.encode())
    except OSError as error:  # a full disk
        path.unlink(missing_ok=True)
        raise EnvironmentProblem(f"{path} cannot be written: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return True


def _read(path: Path) -> str | None:
    """What the lock says, perhaps nothing yet or nothing that can be read; None when there is none."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def _owner(path: Path) -> Holder | None:
    try:
        return read_record(path, Holder)
    except GrpoHpcError:
        return None


def _age(path: Path) -> float:
    """Seconds since ``path`` was written, by the clock of its file system: that of this machine may be another one."""
    now = path.with_name(f"{path.name}.{uuid4().hex}")
    now.touch()
    try:
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        now.unlink()


def _take_over(path: Path, held: str) -> None:
    """Remove a lock that nobody holds any more; two who try it remove one.

    Whoever renames it first has it; one who came too late, and has moved away the lock of the first, puts it back.
    """
    owner = _owner(path)
    with suppress(OSError):
        if not owner.alive() if owner and owner.here else _age(path) > STALE_S:
            aside = path.with_name(f"{path.name}.{uuid4().hex}")
            path.rename(aside)
            if _read(aside) == held:
                print(f"the lock of {owner or 'nobody'} was taken over: it is not there any more", file=sys.stderr)
            else:
                os.link(aside, path)
            aside.unlink()
