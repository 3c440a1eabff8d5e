"""What to show of the logs when training crashed."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

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

    A rank that a signal killed was first: nothing that happens to another one does that. Else torchrun names a rank on
    each node, and of these, and then of the others, the first counts whose traceback is not about a peer that it lost.
    Without any traceback it is the rank that torchrun names, or the launcher's own log.
    """
    texts = {log: log.read_text(encoding="utf-8", errors="replace") for log in rank_logs if log.is_file()}
    launcher_text = launcher_log.read_text(encoding="utf-8", errors="replace") if launcher_log.is_file() else ""
    for rank, number in _EXIT.findall(launcher_text):
        if -int(number) in _NOT_OWN_DOING:
            log = launcher_log.with_name(f"rank_{rank}.log")
            cause = f"rank {rank} was killed by signal {-int(number)} ({signal.Signals(-int(number)).name})"
            return Crash(log, _excerpt(texts.get(log, "")), cause)
    named = [f"rank_{rank}.log" for rank in _ROOT_CAUSE.findall(launcher_text)]
    texts = dict(sorted(texts.items(), key=lambda item: item[0].name not in named))
    raised = {log: _excerpt(text) for log, text in texts.items() if _TRACEBACK in text}
    if raised:
        own = (log for log, lines in raised.items() if not _LOST_PEER.search("\n".join(lines)))
        log = next(own, next(iter(raised)))
        return Crash(log, raised[log])
    if _TRACEBACK not in launcher_text and texts and named:
        log, text = next(iter(texts.items()))
        return Crash(log, _excerpt(text))  # killed without a traceback, as by the kernel when memory runs out
    return Crash(launcher_log, _excerpt(launcher_text))


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
