"""What to show of the logs when training crashed."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from grpo_hpc.runs.log_ends import ends_of

_TRACEBACK = "Traceback (most recent call last):"
_ROOT_CAUSE = re.compile(r"Root Cause.*?\brank\s*:\s*(\d+)", re.DOTALL)
# torchrun's block about one rank that failed by itself; what it ends afterwards is not listed
_EXIT = re.compile(r"^ *rank *: (\d+) \(local_rank: \d+\)\n *exitcode *: (-?\d+)", re.MULTILINE)
_NOT_OWN_DOING = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL}
# the last words of ranks whose peer went away, from gloo, NCCL and the store that they meet in
_LOST_PEER = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|remote process (exited|has terminated)"
    r"|ncclRemoteError|DistNetworkError|Watchdog caught collective",
    re.IGNORECASE,
)
_RANK_MARK = re.compile(r"^\[rank\d+\]: ?")  # torch marks every line of an uncaught exception
# srun about the task of one node, which is all of the step there
_TASK_ENDED = re.compile(
    r"^srun: error: (?P<node>\S+): tasks? [\d,-]+: (?P<how>Exited with exit code (?P<code>\d+)|.+)", re.MULTILINE
)
# vLLM about a process of its own; what its engine says afterwards is that it has lost it
_WORKER_DIED = re.compile(r"Worker proc (?P<name>\S+) died unexpectedly \(exit code: (?P<code>-?\d+)\)")
_MOST_LINES = 40


@dataclass(frozen=True)
class Crash:
    """The log that tells most, and its last lines from the first traceback on.

    Attributes:
        cause: what happened to that rank, where it could not say so itself; else empty.
    """

    log: Path
    lines: list[str]
    cause: str = ""


def find_crash(launcher_log: Path, rank_logs: list[Path]) -> Crash:
    """The first failure of an attempt.

    A rank that a signal killed was first: nothing that happens to another one does that. Then a whole node of which
    srun says so. Else torchrun names a rank on each node, and of these, and then of the others, the first counts whose
    traceback is not about a peer that it lost. Without any traceback it is the rank that torchrun names, or the
    launcher's own log. Of long logs only the ends are read.
    """
    launcher_text = ends_of(launcher_log)
    if killed := _killed(launcher_log, launcher_text):
        return killed
    named = [f"rank_{rank}.log" for rank in _ROOT_CAUSE.findall(launcher_text)]
    logs = sorted(filter(Path.is_file, rank_logs), key=lambda log: log.name not in named)
    victim = None
    for log in logs:
        text = ends_of(log)
        if _TRACEBACK in text:
            found = Crash(log, _excerpt(text))
            if not _LOST_PEER.search("\n".join(found.lines)):
                return found
            victim = victim or found
    if victim:
        return victim
    if _TRACEBACK not in launcher_text and logs and named:
        return Crash(logs[0], _excerpt(ends_of(logs[0])))  # it ended without a traceback
    return Crash(launcher_log, _excerpt(launcher_text))


def _killed(launcher_log: Path, text: str) -> Crash | None:
    """The process that was ended first, as torchrun, vLLM or srun has it."""
    for rank, number in _EXIT.findall(text):
        if -int(number) in _NOT_OWN_DOING:
            log = launcher_log.with_name(f"rank_{rank}.log")
            return Crash(log, _excerpt(ends_of(log)), f"rank {rank} was {by_signal(-int(number))}")
    if worker := _WORKER_DIED.search(text):
        code = int(worker["code"])
        how = f"was {by_signal(-code)}" if code < 0 else f"ended with exit code {code}"
        return Crash(launcher_log, _excerpt(text), f"vLLM's worker {worker['name']} {how}")
    # of several tasks the first: srun kills the others
    task = _TASK_ENDED.search(text)
    if task is None or (task["code"] and int(task["code"]) - 128 not in _NOT_OWN_DOING):
        return None
    how = by_signal(int(task["code"]) - 128) if task["code"] else f"ended by a signal: {task['how']}"
    return Crash(launcher_log, _excerpt(text), f"what starts the ranks on {task['node']} was {how}")


def by_signal(number: int) -> str:
    """What a signal does to a process, in words."""
    names = {known.value: f" ({known.name})" for known in signal.Signals}
    return f"killed by signal {number}{names.get(number, '')}"


def _excerpt(text: str) -> list[str]:
    """The first traceback, or the end of the log; at most ``_MOST_LINES`` lines, cut in the middle."""
    lines = [_RANK_MARK.sub("", line) for line in text.rstrip().splitlines()]
    starts = [index for index, line in enumerate(lines) if _TRACEBACK in line]
    if not starts:
        return lines[-_MOST_LINES:]
    lines = lines[starts[0] :]
    # a traceback ends at the first line after it that is not indented: the exception itself
    end = next((i for i, line in enumerate(lines[1:], 1) if line and not line[0].isspace() and ":" in line), len(lines))
    shown = lines[: end + 10]
    if len(shown) <= _MOST_LINES:
        return shown
    return [*shown[:5], f"  ... {len(shown) - _MOST_LINES} lines left out ...", *shown[-(_MOST_LINES - 5) :]]
