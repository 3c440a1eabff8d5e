"""Worker processes that call reward functions, each completion on its own, with a time limit and retries.

A worker that takes too long or dies is killed with its whole process group and replaced; the completions that it was
working on count as failed, and the others go on. The processes are started afresh (no fork of a trainer that has
threads and a GPU) and import no torch by themselves.

A thread of the pool speaks with them. It lasts as long as they do: a worker is killed when the thread that started it
ends.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from grpo_hpc.errors import ConfigError, EnvironmentProblem

_START_SECONDS = 300.0  # user files may import much
_GRACE_SECONDS = 2.0  # for an event loop to report its own time-outs
_START = 0  # among the numbers of tasks


@dataclass(frozen=True)
class Task:
    """One completion for one reward function: ``offered`` has lists of length 1."""

    column: str
    offered: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        score: None where there is none.
        failure: ``error``, ``timeout`` or ``killed`` (its worker died); empty when the function answered.
        text, hint: what went wrong.
    """

    score: float | None = None
    failure: str = ""
    text: str = ""
    hint: str = ""


@dataclass(eq=False)
class _Asked:
    """A task without an answer: ``alone`` where it needs a worker to itself."""

    task: Task
    answer: Future[Outcome] = field(default_factory=Future)
    tries: int = 0
    alone: bool = False

    def settle(self, outcome: Outcome | BaseException) -> None:
        if not self.answer.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Outcome):
            self.answer.set_result(outcome)
        else:
            self.answer.set_exception(outcome)


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    requests: int
    replies: int
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    deadlines: dict[int, float] = field(default_factory=dict)  # by number of the task, _START too

    def send(self, message: object) -> None:
        data = pickle.dumps(message)
        self.outgoing += struct.pack("!I", len(data)) + data
        self.write()

    def write(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError):  # a dead worker is noticed when it is read from
            while self.outgoing:
                del self.outgoing[: os.write(self.requests, self.outgoing)]

    def read(self) -> list[dict[str, Any]] | None:
        """Complete messages that have arrived; None when the worker is gone, or says what is no message."""
        with suppress(BlockingIOError):
            data = os.read(self.replies, 1 << 16)
            if not data:
                return None
            self.incoming += data
        found = []
        while len(self.incoming) >= 4:
            end = 4 + struct.unpack("!I", self.incoming[:4])[0]
            if len(self.incoming) < end:
                break
            try:
                found.append(json.loads(self.incoming[4:end]))
            except ValueError:  # something in the worker writes where only answers belong
                return None
            del self.incoming[:end]
        return found

    def kill(self) -> None:
        """End the worker and what it started, as far as that stayed in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.requests)
        os.close(self.replies)


class WorkerPool:
    """Calls the reward functions that ``names`` mean.

    Args:
        names, given, run: as for :func:`grpo_hpc.rewards.registry.resolve`.
        workers: processes at most, besides the one for async functions.
        concurrency: calls of async functions at a time.
        timeout: seconds for one completion.
        retries: further attempts after a failure.
        model: the one name is a reward model, which one process loads; it sees the GPUs.
    """

    def __init__(
        self,
        names: Sequence[str],
        given: Mapping[str, Mapping[str, Any]] | None = None,
        run: Mapping[str, Any] | None = None,
        *,
        workers: int = 2,
        concurrency: int = 32,
        timeout: float = 60.0,
        retries: int = 0,
        model: bool = False,
    ) -> None:
        self._model = model
        self._setup = (list(names), dict(given or {}), dict(run or {}), timeout)
        self._limit, self._concurrency, self._timeout, self._retries = workers, concurrency, timeout, retries
        self._workers: list[_Worker] = []
        self._looping: _Worker | None = None
        self._async: frozenset[str] = frozenset()
        self._new, self._plain, self._waiting = deque[_Asked](), deque[_Asked](), deque[_Asked]()
        self._given: dict[int, _Asked] = {}
        self._numbers = count(_START + 1)
        self._thread: threading.Thread | None = None
        self._loaded = Future[None]()
        self._lock, self._closing = threading.Lock(), False
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)

    def start(self) -> None:
        """Start the first worker, so that functions that cannot be loaded are known at once.

        Raises:
            ConfigError: as for :func:`grpo_hpc.rewards.registry.resolve`.
            EnvironmentProblem: the worker died, or this machine lacks what a function needs.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="rewards", daemon=True)
            self._thread.start()
        self._loaded.result()

    def submit(self, task: Task) -> Future[Outcome]:
        """The outcome of ``task``; first come, first served. One that is cancelled before its turn is not computed.

        Its error is one that :meth:`start` could raise, of a worker in place of one that died, or ``CancelledError``
        when the pool is closed.
        """
        self.start()
        asked = _Asked(task)
        with self._lock:
            if self._closing:
                asked.settle(CancelledError())
            else:
                self._new.append(asked)
        self._ring()
        return asked.answer

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """The outcome of every task, in order. Returns when all have one."""
        return [answer.result() for answer in [self.submit(task) for task in tasks]]

    def close(self) -> None:
        """End all workers, whatever they do."""
        with self._lock:
            self._closing = True
        self._ring()
        if self._thread is not None:
            self._thread.join()
        self._bell.close()
        self._ear.close()

    def _ring(self) -> None:
        with suppress(OSError):  # it rings already, or nobody is there
            self._bell.send(b"!")

    def _serve(self) -> None:
        try:
            self._load()
            self._loaded.set_result(None)
        except Exception as error:
            self._give_up(error)
            return self._loaded.set_exception(error)
        while not self._closing:
            try:
                self._hand_out()
                self._collect()
            except Exception as error:
                self._give_up(error)
        return self._give_up(CancelledError())

    def _load(self) -> None:
        first = self._spawn()
        if self._model:
            self._looping = first
        else:
            self._workers.append(first)
        while first.deadlines and not self._closing:
            self._collect()

    def _give_up(self, error: BaseException) -> None:
        """No worker is left, and who waits for an answer gets ``error``."""
        for worker in self._all():
            worker.kill()
        self._workers, self._looping = [], None
        asked = [*self._given.values(), *self._plain, *self._waiting]
        for left in (self._given, self._plain, self._waiting):
            left.clear()
        while self._new:
            asked.append(self._new.popleft())
        for one in asked:
            one.settle(error)

    def _all(self) -> list[_Worker]:
        return self._workers + ([self._looping] if self._looping else [])

    def _hand_out(self) -> None:
        while self._new:
            self._put(self._new.popleft())
        for worker in self._workers:
            if not worker.deadlines and (asked := _next(self._plain)):
                self._give(worker, asked, 0.0)
        while self._looping and self._has_room(self._looping) and (asked := _next(self._waiting)):
            self._give(self._looping, asked, _GRACE_SECONDS)
        starting = sum(_START in worker.deadlines for worker in self._workers)
        for _ in range(min(len(self._plain) - starting, self._limit - len(self._workers))):
            self._workers.append(self._spawn())
        if self._waiting and self._looping is None:
            self._looping = self._spawn()

    def _put(self, asked: _Asked) -> None:
        together = asked.task.column in self._async and not asked.alone
        (self._waiting if together else self._plain).append(asked)

    def _has_room(self, worker: _Worker) -> bool:
        return _START not in worker.deadlines and len(worker.deadlines) < self._concurrency

    def _give(self, worker: _Worker, asked: _Asked, grace: float) -> None:
        number = next(self._numbers)
        self._given[number] = asked
        worker.deadlines[number] = time.monotonic() + self._timeout + grace
        worker.send((number, asked.task.column, dict(asked.task.offered)))

    def _collect(self) -> None:
        """Wait until something happens, and see to it."""
        for worker in _woken(self._all(), self._ear):
            worker.write()
            messages = worker.read()
            if messages is None:
                self._lose(worker, Outcome(None, "killed", "its worker process died"))
            for message in messages or ():
                self._hear(worker, message)
        now = time.monotonic()
        for worker in self._all():
            if any(deadline <= now for deadline in worker.deadlines.values()):
                self._lose(worker, Outcome(None, "timeout", f"it took more than {self._timeout:g} s"))

    def _hear(self, worker: _Worker, message: dict[str, Any]) -> None:
        if "broken" in message:
            kind = EnvironmentProblem if message["kind"] == "EnvironmentProblem" else ConfigError
            raise kind(message["broken"], message["hint"])
        if "ready" in message:
            del worker.deadlines[_START]
            self._async = frozenset(message["ready"])
            self._concurrency = message["at_once"] or self._concurrency
        elif worker.deadlines.pop(message["number"], None) is not None:
            self._end(message["number"], _outcome(message))

    def _end(self, number: int, outcome: Outcome) -> None:
        asked = self._given.pop(number)
        asked.tries += 1
        if outcome.failure and asked.tries <= self._retries:
            self._put(asked)
        else:
            asked.settle(outcome)

    def _lose(self, worker: _Worker, outcome: Outcome) -> None:
        """Give ``worker`` up. Its task ends with ``outcome``; of several nobody knows which was at fault."""
        numbers = list(worker.deadlines)
        worker.kill()
        if worker is self._looping:
            self._looping = None
        else:
            self._workers.remove(worker)
        if _START in numbers:
            raise _not_started(outcome)
        if len(numbers) == 1:
            self._end(numbers[0], outcome)
        else:
            self._ask_alone([self._given.pop(number) for number in numbers])

    def _ask_alone(self, asked: Sequence[_Asked]) -> None:
        for one in asked:
            one.alone = True
            self._put(one)

    def _spawn(self) -> _Worker:
        worker = _start(gpus=self._model)
        worker.deadlines[_START] = time.monotonic() + _START_SECONDS
        worker.send(self._setup)
        return worker


def _next(asked: deque[_Asked]) -> _Asked | None:
    """The first that somebody still waits for."""
    while asked:
        if not (first := asked.popleft()).answer.cancelled():
            return first
        first.settle(CancelledError())
    return None


def _not_started(outcome: Outcome) -> EnvironmentProblem:
    if outcome.failure == "timeout":
        return EnvironmentProblem(f"loading the reward functions took more than {_START_SECONDS:g} s")
    hint = "Its messages are in the log of this process; a file of reward functions may end it."
    return EnvironmentProblem("the worker process of the reward functions died at its start", hint)


def _start(gpus: bool) -> _Worker:
    requests_read, requests = os.pipe()
    replies, replies_write = os.pipe()
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo_hpc.rewards.worker", str(requests_read), str(replies_write)],
        pass_fds=(requests_read, replies_write),
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | hidden,
        start_new_session=True,
    )
    os.close(requests_read)
    os.close(replies_write)
    os.set_blocking(requests, False)
    os.set_blocking(replies, False)
    return _Worker(process, requests, replies)


def _woken(workers: Sequence[_Worker], ear: socket.socket) -> list[_Worker]:
    """Those that can be read from, or written to where something is left to write.

    None of them at the first deadline, or when ``ear`` hears that something else has changed.
    """
    first = min((d for worker in workers for d in worker.deadlines.values()), default=None)
    with selectors.DefaultSelector() as selector:
        selector.register(ear, selectors.EVENT_READ)
        for worker in workers:
            selector.register(worker.replies, selectors.EVENT_READ, worker)
            if worker.outgoing:
                selector.register(worker.requests, selectors.EVENT_WRITE, worker)
        events = selector.select(None if first is None else max(0.0, first - time.monotonic()))
    with suppress(BlockingIOError):
        ear.recv(1 << 16)
    return list({id(key.data): key.data for key, _ in events if key.data is not None}.values())


def _outcome(message: dict[str, Any]) -> Outcome:
    if "kind" in message:
        return Outcome(None, message["kind"], message["error"], message["hint"])
    return Outcome(message["score"])
