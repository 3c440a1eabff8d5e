"""The process that all environments of a rank are forked from: it has imported the user's file, and nothing heavy.

Started by :mod:`grpo_hpc.rollout.environments.environment_pool`, which asks it over a socket to fork a process for an
episode, or to end one. It has one thread, so a fork copies no lock that somebody holds. What episodes print goes
through it into a log of a bounded length.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.errors import GrpoHpcError
from grpo_hpc.redaction import redact_output, redacted
from grpo_hpc.rewards.launcher import end_descendants
from grpo_hpc.rollout.environments.episode_process import serve
from grpo_hpc.rollout.environments.found_in_file import Found, load_environment
from grpo_hpc.rollout.environments.printed import Printed

START_SECONDS = 300  # user files may import much
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LONGEST_REQUEST = 2**20
_GOING_SECONDS = 0.2  # from closing its socket to its end


def main(control: socket.socket) -> None:
    """Serve until the trainer closes its end of ``control``."""
    redact_output()
    signal.alarm(START_SECONDS)  # the trainer may end while the user's file is imported
    setup = json.loads(control.recv(_LONGEST_REQUEST))
    try:
        found = load_environment(setup["environment"], setup["params"])
    except GrpoHpcError as error:
        told = {"broken": redacted(error.message)[:5000], "hint": redacted(error.hint)[:5000]}
        control.send(json.dumps(told).encode())
        return
    signal.alarm(0)
    control.send(json.dumps({"kind": found.kind, "threads": len([*Path("/proc/self/task").iterdir()])}).encode())
    Zygote(control, found, Printed(Path(setup["log"])), setup["memory_bytes"]).run()


@dataclass
class _Episode:
    pid: int
    output: int


class Zygote:
    """Forks and ends the processes of episodes.

    Args:
        control: messages of JSON; a request to fork brings the episode's socket with it.
        memory_bytes: what a process may hold.
    """

    def __init__(self, control: socket.socket, found: Found, printed: Printed, memory_bytes: int) -> None:
        self._control, self._found, self._printed = control, found, printed
        self._memory_bytes = memory_bytes
        self._episodes: dict[int, _Episode] = {}
        self._printing: dict[int, str] = {}  # names by the pipe that they print into
        self._poller = select.poll()
        self._poller.register(control, select.POLLIN)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        gc.collect()
        gc.freeze()  # pages with what was imported stay shared

    def run(self) -> None:
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor in self._printing:  # a request before it may have ended it
                    self._read(descriptor)
                elif descriptor == self._control.fileno() and not self._obey():
                    return self._end_all()

    def _obey(self) -> bool:
        """Do what one request says; False when there will be no more."""
        data, descriptors, *_ = socket.recv_fds(self._control, _LONGEST_REQUEST, 1)
        if not data:
            return False
        request = json.loads(data)
        if "fork" in request:
            answer = self._forked(request["fork"], request["name"], descriptors)
        else:
            answer = {"ended": self._end(request["end"], request["gone"])}
        with suppress(BrokenPipeError, ConnectionResetError):  # read next, it says that the trainer has gone
            self._control.send(json.dumps(answer).encode())
        return True

    def _forked(self, number: int, name: str, received: list[int]) -> dict[str, Any]:
        """Fork a process for an episode. ``received``: its socket; nothing where too many files are open."""
        opened = list(received)
        try:
            (connection,) = received
            output, written = os.pipe()
            opened += output, written
            pid = self._fork(connection, output, written)
        except (OSError, ValueError) as error:
            for descriptor in opened:
                os.close(descriptor)
            why = error.strerror if isinstance(error, OSError) else "too many files are open"
            return {"refused": f"no process could be started for it: {why}"}
        os.close(connection)
        os.close(written)
        os.set_blocking(output, False)
        self._episodes[number] = _Episode(pid, output)
        self._printing[output] = name
        self._poller.register(output, select.POLLIN)
        return {"pid": pid}

    def _fork(self, connection: int, output: int, written: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_episode(connection, output, written, parent)
        return pid

    def _become_episode(self, connection: int, output: int, written: int, parent: int) -> None:
        """Never returns."""
        code = 1
        try:
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
            if os.getppid() != parent:
                return
            self._control.close()
            for descriptor in (output, *self._printing):
                os.close(descriptor)
            _redirect(written)
            resource.setrlimit(resource.RLIMIT_DATA, (self._memory_bytes, self._memory_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            asyncio.run(serve(socket.socket(fileno=connection), self._found.make))
            code = 0
        finally:
            with suppress(Exception):
                sys.stdout.flush()
            os._exit(code)

    def _read(self, output: int) -> None:
        """Keep what an episode has printed, one block of it."""
        try:
            block = os.read(output, 1 << 16)
        except BlockingIOError:
            return
        self._printed.add(self._printing[output], block)
        if not block:  # it is closed with its episode, for its number would go to another one
            self._ignore(output)

    def _ignore(self, output: int) -> None:
        with suppress(KeyError):
            self._poller.unregister(output)

    def _end(self, number: int, gone: bool) -> str:
        """End an episode's process and all that it started; how it had ended by itself, if it had."""
        episode = self._episodes.pop(number, None)
        if episode is None:
            return ""
        how = _ended(episode.pid, _GOING_SECONDS if gone else 0)
        with suppress(ProcessLookupError):
            os.killpg(episode.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):  # before it had a group
            os.kill(episode.pid, signal.SIGKILL)
        os.waitpid(episode.pid, 0)
        end_descendants(frozenset(other.pid for other in self._episodes.values()))
        self._read(episode.output)
        self._printed.end(self._printing.pop(episode.output))
        self._ignore(episode.output)
        os.close(episode.output)
        return how

    def _end_all(self) -> None:
        for number in list(self._episodes):
            self._end(number, gone=False)


def _ended(pid: int, seconds: float) -> str:
    """How a child ended, waited for that long; it stays a zombie, so that its number is not given to another."""
    descriptor = os.pidfd_open(pid)
    (poller := select.poll()).register(descriptor, select.POLLIN)
    poller.poll(1000 * seconds)
    os.close(descriptor)
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return ""
    by_signal = found.si_code != os.CLD_EXITED
    return f"signal {signal.Signals(found.si_status).name}" if by_signal else f"exit code {found.si_status}"


def _redirect(written: int) -> None:
    """Standard output and error into a pipe, whose reader takes secrets out; standard input is empty."""
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((null, 0), (written, 1), (written, 2)):
        os.dup2(descriptor, standard)
    os.close(null)
    os.close(written)
    for name, standard in (("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(standard, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        setattr(sys, name, stream)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
