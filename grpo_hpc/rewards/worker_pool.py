"""Worker processes that call reward functions, each completion on its own, with a time limit and retries.

A worker that takes too long or dies is killed with its whole process group and replaced; the completions that it was
working on count as failed, and the others go on. The processes are started afresh (no fork of a trainer that has
threads and a GPU) and import no torch by themselves.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_hpc.errors import ConfigError, EnvironmentProblem

_START_SECONDS = 300.0  # user files may import much
_GRACE_SECONDS = 2.0  # for an event loop to report its own time-outs


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


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    requests: int
    replies: int
    ready: bool = False
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    deadlines: dict[int, float] = field(default_factory=dict)  # by number of the task

    def send(self, message: object) -> None:
        data = pickle.dumps(message)
        self.outgoing += struct.pack("!I", len(data)) + data
        self.write()

    def write(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError):  # a dead worker is noticed when it is read from
            while self.outgoing:
                del self.outgoing[: os.write(self.requests, self.outgoing)]

    def read(self) -> list[dict[str, Any]] | None:
        """Complete messages that have arrived; None when the worker is gone."""
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
            found.append(json.loads(self.incoming[4:end]))
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

    def start(self) -> None:
        """Start the first worker, so that functions that cannot be loaded are known at once.

        Raises:
            ConfigError: as for :func:`grpo_hpc.rewards.registry.resolve`.
            EnvironmentProblem: the worker died, or this machine lacks what a function needs.
        """
        if self._model and self._looping is None:
            self._looping = self._spawn()
        elif not self._all():
            self._workers.append(self._spawn())

    def run(self, tasks: Sequence[Task]) -> list[Outcome]:
        """The outcome of every task, in order. Returns when all have one."""
        self.start()
        outcomes: dict[int, Outcome] = {}
        tries = [0] * len(tasks)
        alone = {n for n, task in enumerate(tasks) if task.column not in self._async}
        plain = deque(alone)
        waiting = deque(n for n in range(len(tasks)) if n not in alone)
        while len(outcomes) < len(tasks):
            self._hand_out(tasks, plain, waiting)
            for number, outcome in self._collect():
                if outcome is None:
                    alone.add(number)
                    plain.append(number)
                    continue
                tries[number] += 1
                if outcome.failure and tries[number] <= self._retries:
                    (plain if number in alone else waiting).append(number)
                else:
                    outcomes[number] = outcome
        return [outcomes[number] for number in range(len(tasks))]

    def close(self) -> None:
        """End all workers."""
        for worker in self._all():
            worker.kill()
        self._workers, self._looping = [], None

    def _all(self) -> list[_Worker]:
        return self._workers + ([self._looping] if self._looping else [])

    def _hand_out(self, tasks: Sequence[Task], plain: deque[int], waiting: deque[int]) -> None:
        while plain and (idle := self._idle()) is not None:
            self._give(idle, plain.popleft(), tasks, 0.0)
        if waiting and self._looping is None:
            self._looping = self._spawn()
        while waiting and self._looping and len(self._looping.deadlines) < self._concurrency:
            self._give(self._looping, waiting.popleft(), tasks, _GRACE_SECONDS)

    def _idle(self) -> _Worker | None:
        for worker in self._workers:
            if not worker.deadlines:
                return worker
        if len(self._workers) == self._limit:
            return None
        self._workers.append(self._spawn())
        return self._workers[-1]

    def _give(self, worker: _Worker, number: int, tasks: Sequence[Task], grace: float) -> None:
        worker.deadlines[number] = time.monotonic() + self._timeout + grace
        worker.send((number, tasks[number].column, dict(tasks[number].offered)))

    def _collect(self) -> list[tuple[int, Outcome | None]]:
        """Wait until something happens; what has ended by then. None: one of several calls broke the loop of all."""
        busy = [worker for worker in self._all() if worker.deadlines]
        ended: list[tuple[int, Outcome | None]] = []
        for worker in _woken(busy):
            worker.write()
            messages = worker.read()
            if messages is None:
                ended += self._lost(worker, Outcome(None, "killed", "its worker process died"))
                continue
            for message in messages:
                if worker.deadlines.pop(message["number"], None) is not None:
                    ended.append((message["number"], _outcome(message)))
        now = time.monotonic()
        for worker in busy:
            if any(deadline <= now for deadline in worker.deadlines.values()):
                ended += self._lost(worker, Outcome(None, "timeout", f"it took more than {self._timeout:g} s"))
        return ended

    def _lost(self, worker: _Worker, outcome: Outcome) -> list[tuple[int, Outcome | None]]:
        """Give ``worker`` up. Its task ends with ``outcome``; of several nobody knows which was at fault."""
        numbers = list(worker.deadlines)
        worker.deadlines.clear()
        worker.kill()
        if worker is self._looping:
            self._looping = None
        else:
            self._workers.remove(worker)
        return [(number, outcome if len(numbers) == 1 else None) for number in numbers]

    def _spawn(self) -> _Worker:
        worker = _start(gpus=self._model)
        worker.send(self._setup)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for _ in _woken([worker], deadline):
                worker.write()
                messages = worker.read()
                if messages is None:
                    worker.kill()
                    hint = "Its messages are in the log of this process; a file of reward functions may end it."
                    raise EnvironmentProblem("the worker process of the reward functions died at its start", hint)
                for message in messages:
                    if "broken" in message:
                        worker.kill()
                        kind = EnvironmentProblem if message["kind"] == "EnvironmentProblem" else ConfigError
                        raise kind(message["broken"], message["hint"])
                    self._async = frozenset(message["ready"])
                    self._concurrency = message["at_once"] or self._concurrency
                    return worker
        worker.kill()
        raise EnvironmentProblem(f"loading the reward functions took more than {_START_SECONDS:g} s")


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


def _woken(workers: Sequence[_Worker], deadline: float = float("inf")) -> list[_Worker]:
    """Those that can be read from, or written to where something is left to write; at the first deadline none."""
    if not workers:
        return []
    first = min([deadline, *(d for worker in workers for d in worker.deadlines.values())])
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.replies, selectors.EVENT_READ, worker)
            if worker.outgoing:
                selector.register(worker.requests, selectors.EVENT_WRITE, worker)
        events = selector.select(max(0.0, first - time.monotonic()))
    return list({id(key.data): key.data for key, _ in events}.values())


def _outcome(message: dict[str, Any]) -> Outcome:
    if "kind" in message:
        return Outcome(None, message["kind"], message["error"], message["hint"])
    return Outcome(message["score"])
