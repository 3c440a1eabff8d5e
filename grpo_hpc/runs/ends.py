"""How an attempt ended, told from what it left behind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from grpo_hpc.observe.events import read_events
from grpo_hpc.runs.attempts import State, saved_step
from grpo_hpc.runs.crash import Crash, by_signal, find_crash
from grpo_hpc.runs.log_ends import ends_of
from grpo_hpc.runs.run_dir import RunDir

# What srun and slurmstepd write when they end a step, and what kernel and CUDA leave of a lack of memory.
_SLURM_SAYS: tuple[tuple[State, re.Pattern[str]], ...] = (
    ("timeout", re.compile(r"DUE TO TIME LIMIT|time limit exceeded", re.IGNORECASE)),
    ("preempted", re.compile(r"DUE TO PREEMPTION", re.IGNORECASE)),
    ("node_failure", re.compile(r"DUE TO NODE FAILURE|Node failure on|Node \S+ (?:has )?failed", re.IGNORECASE)),
    (
        "out_of_memory",
        re.compile(
            r"oom[-_ ]kill|exceeded (?:job )?memory limit|Out Of Memory|OutOfMemoryError|CUDA out of memory",
            re.IGNORECASE,
        ),
    ),
)
# srun counts who ended, and both say that a step is taken down: never why
_SLURM_COUNTS = re.compile(r"^srun: |^slurmstepd\S*: error: \*\*\* .* \*\*\*$")
_FAILURE = re.compile(r"\berror\b|\bfatal\b|exception|died|killed|no such file|cannot|failed", re.IGNORECASE)
_PROGRESS = re.compile(r"\b(DEBUG|INFO|WARNING)\b")
_NOBODYS_MISTAKE = {"ServersLost"}  # kinds of errors after which another start may well go on
_FULL = 2**20  # bytes free; with less no log can say why
OF_SLURM: dict[str, State] = {
    "COMPLETED": "lost",  # Slurm is content, but the run did not say that it finished
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "REQUEUED": "preempted",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "FAILED": "crash",
}
"""What a state of Slurm's accounting says of an attempt that left no record of its end."""


@dataclass(frozen=True)
class End:
    """How an attempt ended, with one line for people."""

    state: State
    reason: str


def judge(
    run_dir: RunDir, code: int | None, asked: State | None, offset: int, launcher_log: Path, rank_logs: list[Path]
) -> End:
    """How the training step ended.

    Args:
        code: exit code of the step; None when it had to be ended, because it did not stop in time.
        asked: why it was told to stop, if it was: timeout, preempted, stopped or cancelled.
        offset: bytes of the file of events that are older than this attempt.
    """
    found, _ = read_events(run_dir.events, offset)
    first = {event["event"]: event for event in reversed(found)}  # of several errors the first is the cause
    if code == 0 and "finished" in first:
        return End("success", "finished")
    if "stopped" in first and (code == 0 or asked):
        return End(asked or "stopped", f"saved and stopped after step {first['stopped']['step']}")
    if "error" in first:
        error = first["error"]
        state: State = "crash" if error["kind"] in _NOBODYS_MISTAKE else "error"
        return End(state, f"{error['kind']}: {error['message']}")
    if asked:
        late = "" if code is not None else "; a step or a rollout took longer than there was time to stop"
        return End(asked, unsaved(run_dir) + late)
    crash = find_crash(launcher_log, rank_logs)
    text = ends_of(launcher_log)
    full = f"; the disk of {run_dir.path} is full" if disk_usage(run_dir.path).free < _FULL else ""
    return of_texts(text, "\n".join(crash.lines)) or End("crash", what_happened(code or 0, crash) + full)


def unsaved(run_dir: RunDir) -> str:
    """What is lost when an attempt ends without a last checkpoint."""
    step = saved_step(run_dir)
    return f"ended before it had saved what came after step {step}" if step else "ended before anything was saved"


def of_texts(*texts: str) -> End | None:
    """What Slurm, kernel or CUDA say in logs about the end of a step; None when they say nothing."""
    for state, pattern in _SLURM_SAYS:
        for text in texts:
            if match := pattern.search(text):
                return End(state, _line_of(text, match))
    return None


def what_happened(code: int, crash: Crash) -> str:
    """A crash in one line.

    Args:
        code: exit code, or a signal's number with a minus.
    """
    how = by_signal(-code) if code < 0 else f"exit code {code}"
    what = crash.cause or _error_line(crash.lines) or _last_words(crash.lines)
    return f"{how}; {crash.log.name}: {what[:300]}"


def why_cancelled(launcher_log: Path) -> State | None:
    """Why Slurm ended a step, from the line that it writes then; None without one."""
    text = ends_of(launcher_log)
    found = re.search(r"\bCANCELLED AT \S+(?: DUE TO ([A-Z ]+?))?(?:, [^*]*)? \*\*\*", text)
    if found is None:
        return None
    reasons: dict[str | None, State] = {
        None: "cancelled",
        "TIME LIMIT": "timeout",
        "PREEMPTION": "preempted",
        "JOB REQUEUE": "preempted",
        "NODE FAILURE": "node_failure",
    }
    return reasons.get(found[1])


def why_ended(asked: State | None, word: str | None, line: State | None) -> State | None:
    """Why an attempt was told to end; None when it was not.

    Args:
        asked: what Slurm's first signal meant; ``preempted`` is TERM, which comes with every other reason, too.
        word: Slurm's own for how it ends the job; None while it lets it run.
        line: :func:`why_cancelled`. Where it gives no reason it says little: Slurm ends a step with such a line when
            one of its tasks has failed.
    """
    if asked == "timeout":
        return asked
    if word is None:
        return (line or asked) if asked else None
    return line if line not in (None, "cancelled") else OF_SLURM.get(word, "cancelled")


def _line_of(text: str, match: re.Match[str]) -> str:
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    return text[start : end if end >= 0 else None].strip()[:300]


def _last_words(lines: list[str]) -> str:
    """The last line that is about a failure, else the last one that is no mere note of progress, else the last one."""
    said = [line.strip() for line in lines if line.strip() and not _SLURM_COUNTS.search(line)]
    for better in (_FAILURE.search, lambda line: not _PROGRESS.search(line)):
        if found := [line for line in said if better(line) and not _PROGRESS.search(line)]:
            return found[-1]
    return (said or [line.strip() for line in lines] or ["no output"])[-1]


def _error_line(lines: list[str]) -> str:
    """The exception itself, the first line of a traceback that is not indented."""
    traceback = next((i for i, line in enumerate(lines) if line.startswith("Traceback")), None)
    if traceback is None:
        return ""
    return next((line for line in lines[traceback + 1 :] if line and not line[0].isspace()), "")[:300]
