"""How a run stands: what its directory says, held against what Slurm or this machine says of its processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from grpo_hpc.cluster.job_states import JobStates, ask
from grpo_hpc.errors import GrpoHpcError
from grpo_hpc.observe.events import read_events
from grpo_hpc.observe.history import History
from grpo_hpc.observe.metrics import reward_name
from grpo_hpc.observe.state import RunState
from grpo_hpc.runs.attempts import (
    OVER,
    Attempt,
    damaged_attempts,
    history,
    named_checkpoints,
    newest_unread,
    saved_step,
)
from grpo_hpc.runs.ends import OF_SLURM
from grpo_hpc.runs.holder import launcher_of, silent_for
from grpo_hpc.runs.records import DAMAGE, damage
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.run_logs import main_log
from grpo_hpc.runs.submissions import Submission, submissions
from grpo_hpc.saved_files import MANIFEST

LIVE = frozenset({"queued", "starting", "running"})
"""States in which something is still to come by itself. The others are ``prepared`` and the ends of an attempt."""
_FAILED = frozenset({"node_failure", "out_of_memory", "error", "preflight", "crash", "lost"})
_SILENT_S, _SILENT_STEPS = 900.0, 10
_TAIL = 1 << 18  # bytes of events that are read for the present phase


@dataclass(frozen=True)
class Standing:
    """Facts about a run at one moment; times are seconds since the epoch.

    Attributes:
        state: ``prepared`` (never handed to an executor), ``queued``, ``starting``, ``running``, or how its newest
            attempt ended, as in :data:`grpo_hpc.runs.attempts.State`.
        detail: why, in one line: Slurm's reason for waiting, the reason of the end.
        attempt: number of the newest start; None before the first.
        step: optimizer steps made, of ``total_steps``.
        phase: what it is doing, a key of :data:`grpo_hpc.observe.metrics.PHASES`; empty unless it runs.
        seconds_left: estimate for the remaining steps; None unless it runs and has made a step.
        rewards: mean reward of every step so far; None where it was not finite.
        held_out: newest evaluation of every reward function.
        damaged: what is wrong with records that were passed over.
        last_error: the newest failure of an attempt in one line, also when a later attempt went well.
        logs: the log to read first; None before there is one.
        changed: when anything was last heard of it.
        known: false where Slurm, or the machine that runs it, could not be asked: ``state`` is what was recorded.
        heard: time of the newest event, which tells a run that works from one that hangs; None before the first.
        seconds_run: of all starts together.
        checkpoint, export: the newest checkpoint that was written to its end, and the exported model; None without.
    """

    run_dir: str
    name: str
    state: str
    detail: str
    executor: str | None
    job_ids: list[str]
    attempt: int | None
    nodes: list[str]
    step: int
    total_steps: int
    phase: str
    seconds_per_step: float | None
    seconds_left: float | None
    started: float | None
    ended: float | None
    changed: float
    last_error: str
    logs: str | None
    known: bool = True
    heard: float | None = None
    seconds_run: float = 0.0
    checkpoint: str | None = None
    export: str | None = None
    rewards: list[float | None] = field(default_factory=list)
    held_out: dict[str, float | None] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def reward(self) -> float | None:
        """Mean reward of the newest step."""
        return self.rewards[-1] if self.rewards else None

    def silent(self, now: float) -> bool:
        """Whether nothing has been heard of a run that works for so long that it may hang."""
        limit = max(_SILENT_S, _SILENT_STEPS * (self.seconds_per_step or 0.0))
        return self.state == "running" and now - self.changed > limit

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; what ``--json`` prints."""
        return {**asdict(self), "reward": self.reward}


@dataclass(frozen=True)
class Records:
    """Everything that the directory of one run says.

    Attributes:
        submission: the newest one that an executor took; None before the first.
        attempts: the oldest first.
        damaged: what is wrong with records that were passed over.
    """

    run_dir: RunDir
    submission: Submission | None
    attempts: list[Attempt]
    progress: RunState
    damaged: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, run_dir: RunDir) -> Records:
        """Read them.

        Raises:
            ConfigError: a file of the run is damaged.
        """
        try:
            cfg = run_dir.config()
            taken = [entry for entry in submissions(run_dir) if entry.executor == "local" or entry.job_ids]
            progress = _progress(run_dir, cfg.batch.steps)
            submission, damaged = taken[-1] if taken else None, damaged_attempts(run_dir)
            return cls(run_dir, submission, history(run_dir), progress, damaged)
        except DAMAGE as error:
            raise damage(run_dir.path, error) from None


def standing(run_dir: RunDir) -> Standing:
    """How one run stands now.

    Raises:
        ConfigError: a file of the run is damaged.
    """
    return standings([Records.read(run_dir)])[0]


def standings(runs: Sequence[Records]) -> list[Standing]:
    """How several runs stand now; Slurm is asked once for all of them.

    Raises:
        ConfigError, EnvironmentProblem: a file of a run is damaged or cannot be read.
    """
    found = judged(runs)
    for standing in found:
        if isinstance(standing, GrpoHpcError):
            raise standing
    return [standing for standing in found if isinstance(standing, Standing)]


def judged(runs: Sequence[Records]) -> list[Standing | GrpoHpcError]:
    """As :func:`standings`, with the error of each run whose files are damaged or cannot be read."""
    jobs = ask(job_id for run in runs if run.submission for job_id in run.submission.job_ids)
    return [_standing_or_error(run, jobs) for run in runs]


def _standing_or_error(run: Records, jobs: JobStates) -> Standing | GrpoHpcError:
    try:
        return _standing(run, jobs)
    except DAMAGE as error:
        return damage(run.run_dir.path, error)


class Judged(NamedTuple):
    """State and detail of a run, and whether whoever runs it could be asked."""

    state: str
    detail: str
    known: bool = True


def judge_state(
    submission: Submission | None, attempts: Sequence[Attempt], jobs: JobStates, why_stop: str | None
) -> Judged:
    """How a run stands that was handed to Slurm.

    Args:
        submission: the newest one that has jobs; None without any.
        attempts: of all submissions, the oldest first.
        why_stop: text of the file ``stop``.
    """
    if submission is None:
        return Judged("prepared", "not submitted yet")
    mine = [attempt for attempt in attempts if attempt.submission == submission.number]
    last = mine[-1] if mine else None
    if last and last.state in OVER:
        return Judged(last.state, last.reason)
    if jobs.problem:
        return Judged(last.state if last else "queued", f"as recorded; {jobs.problem}", known=False)
    present = {job_id: jobs.queued[job_id] for job_id in submission.job_ids if job_id in jobs.queued}
    own = present.get(last.job_id or "") if last else None
    if last and last.state == "running" and own and not own.waits:
        return Judged("running", "" if own.state == "RUNNING" else f"Slurm says {own.state}")
    if last and own and own.state == "COMPLETING":
        del present[str(last.job_id)]  # its end is recorded, and Slurm tidies up
    if present:
        job_id, job = next(((i, job) for i, job in present.items() if not job.waits), next(iter(present.items())))
        if not job.waits:
            return Judged("starting", f"job {job_id}")
        expected = f", expected to start at {job.start}" if job.start else ""
        return Judged("queued", f"job {job_id}: {job.reason or 'waiting'}{expected}")
    return _gone(submission, last, jobs, why_stop)


def _gone(submission: Submission, last: Attempt | None, jobs: JobStates, why_stop: str | None) -> Judged:
    """State of a run of which Slurm has no job any more, though no attempt says that it is over."""
    if last is None or last.job_id is None:
        cancelled = (job_id for job_id in submission.job_ids if "CANCELLED" in jobs.past.get(job_id, [])[-1:])
        job_id, since = next(cancelled, submission.job_ids[-1]), 0  # what came behind it found nothing to do
    else:
        job_id, since = last.job_id, last.restart + (last.state != "running")
    states = jobs.past.get(job_id, [])[since:]
    if why_stop == "cancelled":
        return Judged("cancelled", "cancelled on request")
    killed = "its supervisor was killed; " if last and last.state == "running" else ""
    if states:
        word = states[0] if killed else states[-1]
        return Judged(OF_SLURM.get(word, "lost"), f"{killed}Slurm says {word} of job {job_id}")
    if last and not killed:
        return Judged(last.state, last.reason)
    return Judged("lost", f"{killed}job {job_id} is gone, and Slurm does not say why")


def _local_state(run_dir: RunDir, submission: Submission, attempts: Sequence[Attempt]) -> Judged:
    last = attempts[-1] if attempts else None
    if last is None or last.submission != submission.number:
        return Judged("prepared", "not started yet")
    if last.state != "running":
        return Judged(last.state, last.reason)
    launcher = launcher_of(last.folder(run_dir))
    if launcher and launcher.alive():
        return Judged("running", str(launcher))
    if launcher is None or launcher.here:
        return Judged("lost", "its launcher is gone")
    if silent := silent_for(last.folder(run_dir)):
        return Judged("lost", f"its launcher, {launcher}, has given no sign of life for {silent / 60:.0f} minutes")
    return Judged("running", f"as recorded; whether it still runs can be seen on {launcher.host} only", known=False)


def _standing(run: Records, jobs: JobStates) -> Standing:
    run_dir, submission, attempts, progress = run.run_dir, run.submission, run.attempts, run.progress
    if submission and submission.executor == "local":
        state, detail, known = _local_state(run_dir, submission, attempts)
    else:
        state, detail, known = judge_state(submission, attempts, jobs, run_dir.why_stop())
    if (unread := newest_unread(run_dir)) and state not in LIVE:
        detail, known = f"{unread} is damaged; delete it if the run is over", False
    last = attempts[-1] if attempts else None
    running = state == "running"
    log = main_log(run_dir, last)
    return Standing(
        run_dir=str(run_dir.path),
        name=run_dir.path.name,
        state=state,
        detail=_line(detail),
        executor=submission.executor if submission else None,
        job_ids=submission.job_ids if submission else [],
        attempt=last.number if last else None,
        nodes=last.nodes if last else [],
        step=progress.done,
        total_steps=progress.total_steps,
        phase=progress.phase if running else "",
        seconds_per_step=progress.typical_seconds(),
        seconds_left=progress.seconds_left(time.time()) if running else None,
        started=attempts[0].started if attempts else None,
        ended=last.ended if last and state not in LIVE else None,
        changed=_changed(run_dir, submission, last),
        last_error=_last_error(attempts, state, detail),
        logs=str(log) if log else None,
        known=known,
        heard=max((path.stat().st_mtime for path in (run_dir.events, run_dir.metrics) if path.exists()), default=None),
        seconds_run=sum(
            (attempt.ended or time.time()) - attempt.started for attempt in attempts if _timed(attempt, last)
        ),
        checkpoint=_named(path for path in named_checkpoints(run_dir) if (path / MANIFEST).is_file()),
        export=_named([run_dir.export] if any(run_dir.export.glob("*.safetensors")) else []),
        rewards=list(progress.history.series("reward/mean").values()),
        held_out=_held_out(progress.history),
        damaged=run.damaged,
    )


def _timed(attempt: Attempt, last: Attempt | None) -> bool:
    """Whether it is known how long it took: of an attempt that others have followed its end."""
    return attempt.ended is not None or attempt is last


def _named(paths: Iterable[Path]) -> str | None:
    return next((str(path) for path in paths), None)


def _progress(run_dir: RunDir, total_steps: int) -> RunState:
    """What the run has reported: all metrics, and the end of its events, which tell what it is doing."""
    found = RunState(total_steps, History.read(run_dir.metrics))
    newest = found.history.last("time/step")
    found.done = newest[0] if newest else saved_step(run_dir)
    size = run_dir.events.stat().st_size if run_dir.events.exists() else 0
    for event in read_events(run_dir.events, max(0, size - _TAIL))[0]:
        found.apply(event)
    return found


def _changed(run_dir: RunDir, submission: Submission | None, last: Attempt | None) -> float:
    times = [run_dir.run_file.stat().st_mtime, submission.at if submission else 0.0]
    times += [last.started, last.ended or 0.0] if last else []
    times += [path.stat().st_mtime for path in (run_dir.events, run_dir.metrics) if path.exists()]
    return max(times)


def _last_error(attempts: Sequence[Attempt], state: str, detail: str) -> str:
    failed = [attempt for attempt in attempts if attempt.state in _FAILED]
    if state in _FAILED and not (failed and failed[-1] is attempts[-1]):
        return f"{state}: {detail}"
    return f"attempt {failed[-1].number}: {failed[-1].state}: {_line(failed[-1].reason)}" if failed else ""


def _held_out(history: History) -> dict[str, float | None]:
    names = [name for name in history.names("eval/") if name.endswith("/mean")]
    newest = {reward_name(name): history.last(name) for name in names}
    return {name: found[1] for name, found in newest.items() if found}


def _line(text: str) -> str:
    return " ".join(text.split())
