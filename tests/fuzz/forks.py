"""Runs the command line in forks with limits, so that what it is fed can neither hang nor eat the machine.

A server is a process that has everything imported already (``python forks.py``): it reads cases as lines of JSON,
forks for each command of a case, and writes one line of JSON about how they ended. A fork costs milliseconds, inherits
nothing of the fork before it, and its CPU time and its death are the kernel's word.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
KILLED_AFTER_CPU_S = 8
KILLED_AFTER_S = 30
SHOWN = 1 << 20  # bytes of what a command prints
PRELOADED = (
    *(
        f"grpo_hpc.cli.{name}"
        for name in ("plan", "starting.submit", "status", "list", "logs", "cluster", "checkpoint")
    ),
    *("grpo_hpc.cli.import_swift", "grpo_hpc.importing.show_import", "grpo_hpc.importing.write"),
    *("grpo_hpc.plan.make", "grpo_hpc.plan.show_plan", "grpo_hpc.plan.search", "grpo_hpc.jobs.prepare"),
    *("grpo_hpc.runs.overview", "grpo_hpc.runs.follow", "grpo_hpc.runs.show_standing", "grpo_hpc.checkpoint.inspect"),
    *("grpo_hpc.checkpoint.folders", "grpo_hpc.checkpoint.verify", "grpo_hpc.rewards.registry"),
    *("rich.console", "rich.table", "rich.tree", "tests.fuzz.checks"),
)


@dataclass(frozen=True)
class Outcome:
    """How one command ended.

    Attributes:
        code: exit code; minus the signal's number when a signal ended it.
        cpu: seconds of CPU.
    """

    words: tuple[str, ...]
    code: int
    cpu: float
    stdout: str
    stderr: str

    def faults(self, allowed: Sequence[int]) -> list[str]:
        """What breaks the rule: our own error or the right result, never a traceback, in bounds of time and memory."""
        found = []
        if self.code == -signal.SIGXCPU:
            found.append("too much CPU")
        elif self.code == -signal.SIGALRM:
            found.append(f"hangs for {KILLED_AFTER_S} s")
        elif self.code not in allowed:
            found.append(f"exit code {self.code}")
        if "Traceback (most recent call last)" in self.stderr:
            found.append("a traceback")
        if self.code == 2 and not self.stderr.strip():
            found.append("exit code 2 without a word")
        return found

    def __str__(self) -> str:
        said = self.stderr.strip()[-2500:]
        return f"{' '.join(map(ascii, self.words))}: exit code {self.code}, {self.cpu:.2f} s of CPU\n{said}"


class Forks:
    """A server, and the pipe to it."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.server.stdin is not None:
            self.server.stdin.close()
        self.server.wait(60)

    def run(
        self, files: Mapping[str, bytes], *commands: Sequence[str], cpu_s: int = KILLED_AFTER_CPU_S
    ) -> list[Outcome]:
        """The outcome of each of ``commands``, run one after the other in a folder that holds ``files``.

        Args:
            cpu_s: seconds of CPU after which a command is killed.
        """
        packed = {name: base64.b64encode(content).decode() for name, content in files.items()}
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps({"files": packed, "commands": commands, "cpu_s": cpu_s}) + "\n")
        self.server.stdin.flush()
        found = json.loads(self.server.stdout.readline())
        return [Outcome(tuple(words), **one) for words, one in zip(commands, found, strict=True)]


def serve() -> None:
    """Answer cases until the pipe is closed."""
    from importlib import import_module

    for name in PRELOADED:
        import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _warm_up(["plan", "quickstart"])
    for line in sys.stdin:
        case = json.loads(line)
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            answer = _run_case(folder, case)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _warm_up(words: list[str]) -> None:
    """What the first call of a command imports and builds is there for every fork."""
    out, err = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        _command(words)
    finally:
        sys.stdout.flush()
        os.dup2(out, 1)
        os.dup2(err, 2)


def _run_case(folder: Path, case: dict[str, Any]) -> list[dict[str, Any]]:
    inside = folder / "inside"
    inside.mkdir()
    for name, content in case["files"].items():
        file = inside / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(content))
    return [_fork(folder, inside, words, case["cpu_s"]) for words in case["commands"]]


def _fork(folder: Path, inside: Path, words: list[str], cpu_s: int) -> dict[str, Any]:
    child = os.fork()
    if child == 0:
        _child(folder, inside, words, cpu_s)
    _, status, used = os.wait4(child, 0)
    shown = {name: _text(folder / name) for name in ("stdout", "stderr")}
    return {"code": os.waitstatus_to_exitcode(status), "cpu": used.ru_utime + used.ru_stime, **shown}


def _text(file: Path) -> str:
    with file.open("rb") as content:
        return content.read(SHOWN).decode(errors="replace")


def _child(folder: Path, inside: Path, words: list[str], cpu_s: int) -> None:
    """Run one command with limits, and end as Python would."""
    code = 1
    try:
        signal.alarm(KILLED_AFTER_S)
        os.chdir(inside)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.environ |= {
            "PATH": "/usr/bin/none",
            "HOME": str(folder),
            "GRPO_HPC_PROFILES": str(inside / "profiles"),
            "COLUMNS": "120",
        }
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GIB, used + GIB))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
        code = _command(words)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _command(words: list[str]) -> int:
    """The exit code of the command line, or of one of our own checks, whose names begin with ``@``."""
    from grpo_hpc.cli import main
    from grpo_hpc.errors import GrpoHpcError
    from tests.fuzz import checks

    try:
        if not words[0].startswith("@"):
            main(words)
        else:
            getattr(checks, words[0][1:])(*words[1:])
    except SystemExit as end:
        return int(str(end.code))
    except GrpoHpcError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    serve()
