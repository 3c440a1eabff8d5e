"""Carrying out a conversion: workers, memory limit, progress, continuation, and a folder that is whole or absent.

The target is built in ``NAME.partial``. ``journal.jsonl`` there notes every finished job with its digests; a killed
conversion of the same plan goes on from it, after finished pieces have been read again and compared. The manifest is
written last and the folder renamed when everything is on disk.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from grpo_hpc.checkpoint import manifest
from grpo_hpc.checkpoint.building import JOURNAL, building
from grpo_hpc.checkpoint.copies import Check, Job, Target
from grpo_hpc.checkpoint.copying import Copier
from grpo_hpc.checkpoint.manifest import Piece
from grpo_hpc.errors import CheckpointError

_WORKER_BYTES = 60 * 2**20  # a worker that holds no data
_BATCH = 32 * 2**20
# what a processor's cache holds is digested and written fastest
_LARGEST_WINDOW, _SMALLEST_WINDOW = 8 * 2**20, 2**20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Work:
    """How much of the machine a conversion may use.

    Attributes:
        workers: processes.
        max_memory: bytes of resident memory over all processes.
        progress: called with bytes done and bytes in all.
    """

    workers: int = 1
    max_memory: int = 4 * 2**30
    progress: Progress = lambda done, total: None

    def window(self, main_bytes: int) -> int:
        """Bytes that a worker assembles at a time, so that everything stays within ``max_memory``.

        Raises:
            CheckpointError: the limit is too low.
        """
        own = _WORKER_BYTES if self.workers > 1 else 0
        each = (self.max_memory - main_bytes) // self.workers - own
        window = each // 4  # the window itself, rows it is cut from, and slack for copies of both
        if window < _SMALLEST_WINDOW:
            least = main_bytes + self.workers * (own + 4 * _SMALLEST_WINDOW)
            raise CheckpointError(
                f"--max-memory {self.max_memory / 2**20:.0f}MB is too little for {self.workers} workers",
                f"At least {least / 2**20 + 1:.0f}MB are needed; each worker less saves {_WORKER_BYTES >> 20}MB.",
            )
        return min(window, _LARGEST_WINDOW)


@dataclass(frozen=True)
class Plan:
    """A folder to be made.

    Attributes:
        sizes: bytes of every file that jobs write; paths are relative to the folder, as in ``jobs``.
        jobs: the copies.
        small: files written at once: headers by (file, offset), and whole small files by (file, None).
        about: what the manifest says about the folder.
    """

    sizes: dict[str, int]
    jobs: tuple[Job, ...]
    small: tuple[tuple[str, int | None, bytes], ...]
    about: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for job in self.jobs)


def build(plan: Plan, folder: Path, work: Work) -> None:
    """Make ``folder`` as planned, or continue an earlier attempt at the same plan.

    Raises:
        CheckpointError: it exists, the memory limit is too low, or a source is damaged; nothing is then left under
            the final name.
    """
    window = work.window(resident())
    with building(folder) as (place, journal):
        done = _prepare(plan, place, journal)
        jobs = [_inside(job, place) for job in plan.jobs]
        for number, digests in _carry_out(jobs, set(done), window, work):
            done[number] = digests
            journal.write(json.dumps([number, digests]) + "\n")
            journal.flush()
        pieces = [
            Piece(target.name, str(target.file), target.offset, target.nbytes, digest)
            for number, job in enumerate(plan.jobs)
            for target, digest in zip(job.targets, done[number], strict=True)
        ]
        _finish(plan, place, pieces)


def _finish(plan: Plan, place: Path, pieces: list[Piece]) -> None:
    with closing(Copier(_LARGEST_WINDOW)) as copier:
        for name, offset, content in plan.small:
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb" if offset is None else "r+b") as out:
                out.seek(offset or 0)
                out.write(content)
            digest = str(copier.digest(file, offset or 0, len(content)))
            pieces.append(Piece("" if offset is None else "header", name, offset or 0, len(content), digest))
    for name in {piece.file for piece in pieces}:
        handle = os.open(place / name, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    manifest.write(place, plan.about, pieces)


def _prepare(plan: Plan, place: Path, journal: TextIO) -> dict[int, list[str]]:
    """All files in their size, and what an earlier attempt at the same plan has finished."""
    fingerprint = hashlib.sha256(repr((plan.sizes, plan.jobs, plan.small)).encode()).hexdigest()
    done = _finished_jobs(plan, place, fingerprint)
    if not done:
        _clear(place)
        journal.truncate(0)
        journal.write(json.dumps(fingerprint) + "\n")
        journal.flush()
        for name, size in plan.sizes.items():
            (place / name).parent.mkdir(exist_ok=True)
            with (place / name).open("wb") as out:
                out.truncate(size)
    return done


def _clear(place: Path) -> None:
    """Remove everything but the journal, which is locked."""
    for entry in place.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != JOURNAL:
            entry.unlink()


def _finished_jobs(plan: Plan, place: Path, fingerprint: str) -> dict[int, list[str]]:
    """Jobs of the journal of which every piece still has its digest."""
    lines = (place / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0] != json.dumps(fingerprint):
        return {}
    done = {}
    with closing(Copier(_LARGEST_WINDOW)) as copier:
        for line in lines[1:]:
            try:
                number, digests = json.loads(line)
                targets = list(zip(plan.jobs[number].targets, digests, strict=True))
            except (ValueError, TypeError, LookupError):
                continue  # the line during which it was killed
            if all(_is_whole(copier, place, target, digest) for target, digest in targets):
                done[number] = digests
    return done


def _is_whole(copier: Copier, place: Path, target: Target, digest: str) -> bool:
    try:
        return copier.digest(place / target.file, target.offset, target.nbytes) == digest
    except CheckpointError:
        return False


def _inside(job: Job, place: Path) -> Job:
    return replace(job, targets=tuple(replace(target, file=place / target.file) for target in job.targets))


def _carry_out(jobs: list[Job], done: set[int], window: int, work: Work) -> Iterator[tuple[int, list[str]]]:
    """Jobs that are not done yet, with their digests, as they are finished."""
    total, at = sum(job.nbytes for job in jobs), sum(jobs[number].nbytes for number in done)
    work.progress(at, total)
    todo = [number for number in range(len(jobs)) if number not in done]
    batches = list(_batches(jobs, todo))
    tasks = ((number, [jobs[job] for job in batch]) for number, batch in enumerate(batches))
    for number, made in in_workers(_run, tasks, window, work.workers):
        at += sum(jobs[job].nbytes for job in batches[number])
        work.progress(at, total)
        yield from zip(batches[number], made, strict=True)


def _batches(jobs: list[Job], numbers: list[int]) -> Iterator[list[int]]:
    """Small jobs together, so that handing them out costs little."""
    batch: list[int] = []
    for number in numbers:
        batch.append(number)
        if sum(jobs[job].nbytes for job in batch) >= _BATCH or len(batch) >= 256:
            yield batch
            batch = []
    if batch:
        yield batch


def in_workers(
    function: Callable[[Any], Any], tasks: Iterator[tuple[int, Any]], window: int, workers: int
) -> Iterator[tuple[int, Any]]:
    """``function`` of every task, with its number, as they are finished: in spawned processes, or one after the other
    in this process when there is one worker.

    Raises:
        CheckpointError: as the function did, or because a worker was killed.
    """
    if workers == 1:
        _set_copier(window)
        try:
            yield from ((number, function(task)) for number, task in tasks)
        finally:
            copier().close()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (window,)) as pool:
        waiting: dict[Future[Any], int] = {}
        try:
            for number, task in tasks:
                with _uninterrupted():
                    waiting[pool.submit(function, task)] = number
                if len(waiting) >= 3 * workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        except BrokenProcessPool as error:
            raise CheckpointError(
                "a worker process was killed, probably for want of memory", "Use fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that are started here never hear of Ctrl-C: this one ends them, without a traceback of each."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finished(waiting: dict[Future[Any], int]) -> list[tuple[int, Any]]:
    finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
    return [(waiting.pop(future), future.result()) for future in finished]


_copier: Copier | None = None


def _set_copier(window: int) -> None:
    global _copier
    _copier = Copier(window)


def _start(window: int) -> None:
    _set_copier(window)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def copier() -> Copier:
    """This worker process's copier."""
    if _copier is None:
        raise RuntimeError("not in a worker process")
    return _copier


def _run(jobs: list[Job]) -> list[list[str]]:
    return [copier().run(job) for job in jobs]


def check_all(checks: Sequence[Check], work: Work) -> list[str]:
    """What is wrong with checked pieces, in words; all of them are read."""
    window, faults, at = work.window(resident()), [], 0
    total = sum(check.nbytes for check in checks)
    for number, fault in in_workers(_fault, iter(enumerate(checks)), window, work.workers):
        at += checks[number].nbytes
        work.progress(at, total)
        if fault:
            faults.append((number, fault))
    return [fault for _, fault in sorted(faults)]


def _fault(check: Check) -> str:
    try:
        copier().check(check)
    except CheckpointError as error:
        return error.message
    return ""


def resident() -> int:
    """Bytes of resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
