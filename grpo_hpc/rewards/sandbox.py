"""Running a program that nobody has read. docs/rewards.md says what this protects from, and what not."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Literal

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.rewards.launcher import OUT_OF_TIME
from grpo_hpc.rewards.seccomp import refusing_filter

Isolation = Literal["namespaces", "limits"]
_WHAT_TO_DO: dict[Isolation, str] = {
    "namespaces": "User namespaces may be switched off on this machine or in this container. With `isolation: limits` "
    "programs run without them: they can then read and write your files and use the network.",
    "limits": "The kernel must have seccomp, and the container must allow it.",
}
_NOBODY = 65534
_LAUNCHER = Path(__file__).with_name("launcher.py").read_text()
_LONGEST_OUTPUT = 1 << 20  # bytes
_GRACE_SECONDS = 10.0  # for the launcher to start and to clear up


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time; of CPU time each of its processes has as many, rounded up.
        memory_bytes: address space of each process.
        processes: at a time, threads included.
        disk_bytes: of one file; with namespaces of all its files together.
    """

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    processes: int = 16
    disk_bytes: int = 64 << 20


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Attributes:
        code: its exit code, 128 + signal, or 124 when time ran out.
        output: what it wrote to standard output, cut at 1 MiB; standard error is thrown away.
        cut: whether it was ended because it wrote more.
    """

    code: int
    output: str
    cut: bool

    @property
    def timed_out(self) -> bool:
        return self.code == OUT_OF_TIME


def run_program(
    program: str,
    text: str = "",
    limits: Limits | None = None,
    isolation: Isolation = "namespaces",
    interpreter: str = sys.executable,
) -> Ran:
    """Run the Python ``program`` with ``text`` as standard input; it and all it started are gone on return.

    Where this process is root, the program runs as the user nobody, who must be able to run ``interpreter``.

    Raises:
        EnvironmentProblem: this machine lacks the isolation.
    """
    limits = limits or Limits()
    order = asdict(limits) | {
        "program": program,
        "input": text,
        "namespaces": isolation == "namespaces",
        "cpu_seconds": ceil(limits.seconds),
        "filter": refusing_filter(os.uname().machine).hex(),
    }
    with tempfile.TemporaryDirectory(prefix="grpo-hpc-", ignore_cleanup_errors=True) as folder:
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
        ran, trouble = _launched(order | {"folder": folder}, interpreter, limits.seconds)
    if trouble:
        raise EnvironmentProblem(f"programs cannot be isolated here by {isolation} ({trouble})", _WHAT_TO_DO[isolation])
    return ran


@cache
def require_isolation(isolation: Isolation, interpreter: str = sys.executable) -> None:
    """Try whether programs can be isolated here.

    Raises:
        EnvironmentProblem: they cannot.
    """
    try:
        ran = run_program("print(6 * 7)", isolation=isolation, interpreter=interpreter)
    except OSError as error:
        whom = "by the user nobody, as whom programs run where this process is root" if os.geteuid() == 0 else "here"
        raise EnvironmentProblem(
            f"{interpreter} cannot be run {whom}: {error.strerror}",
            "Name a Python that everybody may run, as in `interpreter: /usr/bin/python3`.",
        ) from None
    if ran.output.strip() != "42":
        said = f": {ran.output.strip()}" if ran.output else ""
        raise EnvironmentProblem(f"a trial program failed in the sandbox with exit code {ran.code}{said}")


def _launched(order: dict[str, Any], interpreter: str, seconds: float) -> tuple[Ran, str]:
    """How the program ended, and what kept it from being isolated; that has a pipe that the program never gets."""
    status, launchers = os.pipe()
    with os.fdopen(status, errors="replace") as trouble:
        try:
            process = _start(interpreter, launchers)
        finally:
            os.close(launchers)
        ran = _watch(process, json.dumps(order | {"status": launchers}).encode() + b"\n", seconds)
        return ran, trouble.read().strip()


def _start(interpreter: str, status: int) -> subprocess.Popen[bytes]:
    unprivileged = _NOBODY if os.geteuid() == 0 else None  # root's processes are not counted, and own the devices
    return subprocess.Popen(
        [interpreter, "-I", "-S", "-c", _LAUNCHER],  # as text: another user may not be able to read our files
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
        user=unprivileged,
        group=unprivileged,
        extra_groups=None if unprivileged is None else [],
        pass_fds=(status,),
    )


def _watch(process: subprocess.Popen[bytes], order: bytes, seconds: float) -> Ran:
    assert process.stdin and process.stdout
    deadline = time.monotonic() + seconds + _GRACE_SECONDS
    with suppress(BrokenPipeError):
        process.stdin.write(order)
        process.stdin.flush()
    output = _read(process.stdout.fileno(), process.pid, deadline)
    with suppress(BrokenPipeError):
        process.stdin.close()  # the launcher ends the program, if it has not ended
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    with suppress(ProcessLookupError):  # without namespaces a program can kill its launcher, and live on
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    process.stdout.close()
    text = output[:_LONGEST_OUTPUT].decode(errors="replace")
    return Ran(code if code >= 0 else 128 - code, text, len(output) > _LONGEST_OUTPUT)


def _read(pipe: int, launcher: int, deadline: float) -> bytes:
    """What comes until the pipe is closed or the launcher ended, the output is too long or the time is over."""
    output = bytearray()
    ended = os.pidfd_open(launcher)
    watched = select.poll()  # select.select takes no descriptor above 1023, and a trainer may have more
    watched.register(pipe, select.POLLIN)
    watched.register(ended, select.POLLIN)
    while len(output) <= _LONGEST_OUTPUT:
        happened = dict(watched.poll(1000 * max(0.0, deadline - time.monotonic())))
        block = os.read(pipe, 1 << 16) if pipe in happened else b""
        if not block:
            break
        output += block
    os.close(ended)
    return bytes(output)
