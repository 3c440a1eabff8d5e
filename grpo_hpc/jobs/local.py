"""Runs training on this machine: starts torchrun, shows what happens, and says how it ended.

The trainer and this launcher talk through files of the run directory: the trainer reports events, the launcher asks it
to stop by making the file ``stop``.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from grpo_hpc.cluster.secrets import read_secrets
from grpo_hpc.config import RunConfig
from grpo_hpc.errors import EXIT_USER_ERROR
from grpo_hpc.jobs.prepare import stored_profile
from grpo_hpc.jobs.processes import descendants, end_family, start_family
from grpo_hpc.runs.attempt_hold import VARIABLE, Hold
from grpo_hpc.runs.attempts import Attempt, State, begin
from grpo_hpc.runs.crash import find_crash
from grpo_hpc.runs.ends import judge
from grpo_hpc.runs.holder import LauncherNote
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.start_lock import starting
from grpo_hpc.runs.submissions import note_submission

EXIT_DONE, EXIT_CRASH, EXIT_KILLED = 0, 1, 130
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.2
_KILL_GRACE_S = 3.0


def run_local(run_dir: RunDir, command: Sequence[str] | None = None) -> int:
    """Train ``run_dir`` here and watch it to its end. No process of the run is left when this returns.

    Args:
        command: as in :func:`watch_local`.

    Raises:
        EnvironmentProblem: the run waits or runs already.

    Returns:
        0 finished or stopped on request, 2 an error that the user can mend, 1 a crash, 130 killed on request.
    """
    with starting([run_dir]):
        record = begin_local(run_dir)
    return watch_local(run_dir, record, command)


def begin_local(run_dir: RunDir) -> Attempt:
    """Make the next attempt this process's own; call it under the run's start lock."""
    submission = note_submission(run_dir, "local")
    run_dir.stop.unlink(missing_ok=True)
    record = begin(run_dir, "local", [socket.gethostname()], submission.number)
    LauncherNote(record.folder(run_dir)).write()
    return record


def watch_local(run_dir: RunDir, record: Attempt, command: Sequence[str] | None = None) -> int:
    """Train as the attempt ``record``, and watch it to its end.

    Args:
        command: the program to run instead of the step ``train`` of the run's script; it must report the same events.
    """
    cfg, console, hold = run_dir.config(), Console(stderr=True), Hold(run_dir, record)
    attempt = record.folder(run_dir)
    offset = run_dir.events.stat().st_size if run_dir.events.exists() else 0
    others = descendants()
    with _stop_requests() as requests:
        try:
            process = start_family(
                command or ["bash", str(run_dir.job_script), "train"],
                {**os.environ, **_secrets(run_dir), VARIABLE: str(record.number)},
                run_dir.launcher_log(attempt),
            )
            code = _watch(process.poll, run_dir, cfg, requests, console, LauncherNote(attempt))
        finally:
            end_family(others, grace_s=_KILL_GRACE_S if requests.count > 1 else 0.0)
    if lost := hold.lost():
        _say(console, f"attempt {record.number} has lost its run directory: {lost}. Nothing more is written there.")
        return EXIT_USER_ERROR
    if code is None:
        record.end(run_dir, "cancelled", "killed on request", EXIT_KILLED)
        _say(console, f"Killed. {_how_to_resume(run_dir)}")
        return EXIT_KILLED
    logs = [RunDir.rank_log(attempt, rank) for rank in range(cfg.resources.nproc_per_node)]
    asked: State | None = "cancelled" if run_dir.why_stop() == "cancelled" else None
    end = judge(run_dir, code, asked, offset, RunDir.launcher_log(attempt), logs)
    record.end(run_dir, end.state, end.reason, code)
    return _report(run_dir, attempt, logs, code, offset, console)


@dataclass
class _Requests:
    """How often somebody has asked to stop: once means save and stop, twice means now.

    A terminal that went away asks once, however often it says so.
    """

    count: int = 0
    handled: int = 0

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self.count = max(self.count, 1) if number == signal.SIGHUP else self.count + 1
        if number == signal.SIGHUP:
            _leave_terminal()


@contextmanager
def _stop_requests() -> Iterator[_Requests]:
    """Count Ctrl-C, SIGTERM and SIGHUP instead of dying from them; SIGHUP not where nohup has made it mean nothing."""
    requests = _Requests()
    numbers = [n for n in _STOPS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, requests.note) for number in numbers}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Let what would be written to a terminal that is gone, which is an error, go nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        if os.isatty(stream) or stat.S_ISCHR(os.fstat(stream).st_mode):  # one that hung up is no terminal any more
            os.dup2(nowhere, stream)
    os.close(nowhere)


def _watch(
    poll: Callable[[], int | None],
    run_dir: RunDir,
    cfg: RunConfig,
    requests: _Requests,
    console: Console,
    note: LauncherNote,
) -> int | None:
    """Show progress until the process ends (its exit code) or the second stop request comes (None)."""
    from grpo_hpc.observe.live import LiveView

    with LiveView(run_dir.events, run_dir.metrics, cfg.batch.steps, console) as view:
        while (code := poll()) is None:
            if requests.count > requests.handled:
                requests.handled = requests.count
                if requests.count > 1:
                    return None
                run_dir.ask_to_stop("stopped")
                _say(console, "Finishing this step, then saving; press Ctrl-C again to kill.")
            view.poll()
            note.beat()
            time.sleep(_POLL_S)
        view.poll()
    return code


def _report(run_dir: RunDir, attempt: Path, logs: list[Path], code: int, offset: int, console: Console) -> int:
    """Say how the attempt ended, from the events it wrote, and give the launcher's exit code."""
    from grpo_hpc.observe.events import read_events

    events, _ = read_events(run_dir.events, offset) if run_dir.events.exists() else ([], offset)
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        first.setdefault(event["event"], event)  # of several errors the first is the cause
    if code == 0 and "finished" in first:
        return EXIT_DONE
    if code == 0 and "stopped" in first:
        _say(console, f"Stopped after step {first['stopped']['step']}, everything saved. {_how_to_resume(run_dir)}")
        return EXIT_DONE
    if "error" in first:
        error = first["error"]
        _say(console, f"{error['kind']}: {error['message']}", style="bold red")
        if error["hint"]:
            _say(console, error["hint"])
        _say(console, f"Logs: {attempt}", style="dim")
        return EXIT_USER_ERROR
    _report_crash(run_dir, attempt, logs, code, console)
    return EXIT_CRASH


def _report_crash(run_dir: RunDir, attempt: Path, logs: list[Path], code: int, console: Console) -> None:
    crash = find_crash(RunDir.launcher_log(attempt), logs)
    how = "without saying that it finished" if code == 0 else f"with exit code {code}"
    _say(console, f"Training crashed (it ended {how}). From {crash.log}:", style="bold red")
    for line in crash.lines:
        _say(console, f"  {line}")
    _say(console, f"Logs of all ranks: {attempt}\n{_how_to_resume(run_dir)}")


def _secrets(run_dir: RunDir) -> dict[str, str]:
    secrets = stored_profile(run_dir).secrets
    return read_secrets(Path(secrets)) if secrets else {}


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print ``text`` as it is: no markup, no colours of rich's choice, no line breaks inside paths."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _how_to_resume(run_dir: RunDir) -> str:
    return f"Go on with: grpo-hpc resume {shlex.quote(str(run_dir.path))}"
