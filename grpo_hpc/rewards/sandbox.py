"""Running a program that nobody has read. docs/rewards.md says what this protects from, and what not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Literal

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.rewards.launcher import OUT_OF_TIME

Isolation = Literal["namespaces", "limits"]
_NOBODY = 65534
_LAUNCHER = Path(__file__).with_name("launcher.py").read_text()
_LONGEST_OUTPUT = 1 << 20  # bytes


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
        output: what it wrote to standard output, cut at 1 MiB; its standard error is thrown away.
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
    }
    with tempfile.TemporaryDirectory(prefix="grpo-hpc-", ignore_cleanup_errors=True) as folder:
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
        ran, trouble = _launched(order | {"folder": folder}, interpreter)
    if trouble:
        raise EnvironmentProblem(
            f"programs cannot be isolated here by {isolation} ({trouble})",
            "User namespaces may be switched off on this machine or in this container. With `isolation: limits` "
            "programs run without them: they can then read and write your files and use the network.",
        )
    return ran


@cache
def require_isolation(isolation: Isolation, interpreter: str = sys.executable) -> None:
    """Try whether programs can be isolated here.

    Raises:
        EnvironmentProblem: they cannot.
    """
    try:
        ran = run_program("print(6 * 7)", isolation=isolation, interpreter=interpreter)
    except PermissionError:
        raise EnvironmentProblem(
            f"the user nobody, as whom programs run where this process is root, may not run {interpreter}",
            "Name a Python that everybody may run, as in `interpreter: /usr/bin/python3`.",
        ) from None
    if ran.output.strip() != "42":
        raise EnvironmentProblem(f"a trial program did not run in the sandbox: exit code {ran.code}: {ran.output}")


def _launched(order: dict[str, Any], interpreter: str) -> tuple[Ran, str]:
    """How the program ended, and what kept it from being isolated; that has a pipe that the program never gets."""
    unprivileged = _NOBODY if os.geteuid() == 0 else None  # root's processes are not counted, and own the devices
    status, launchers = os.pipe()
    try:
        process = subprocess.Popen(
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
            pass_fds=(launchers,),
        )
    except BaseException:
        os.close(status)
        raise
    finally:
        os.close(launchers)
    assert process.stdin and process.stdout
    with process, os.fdopen(status, errors="replace") as trouble, suppress(BrokenPipeError):
        process.stdin.write(json.dumps(order | {"status": launchers}).encode() + b"\n")
        process.stdin.flush()
        output = process.stdout.read(_LONGEST_OUTPUT + 1)
        process.stdin.close()  # the launcher ends the program, if it has not ended
        code = process.wait()
        code = code if code >= 0 else 128 - code
        text = output[:_LONGEST_OUTPUT].decode(errors="replace")
        return Ran(code, text, len(output) > _LONGEST_OUTPUT), trouble.read().strip()
    return Ran(process.returncode, "", False), "the launcher died"
