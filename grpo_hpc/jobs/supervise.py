"""One attempt of a run inside a Slurm allocation: ``python -m grpo_hpc.jobs.supervise RUN_DIR`` on its first node.

It starts the steps of ``job.sh``, passes the wish to stop on to the trainer, writes down how the attempt ended, and
puts the job back into the queue while there is a reason to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path

from grpo_hpc.cluster import slurm
from grpo_hpc.cluster.profile import Profile
from grpo_hpc.errors import EXIT_USER_ERROR, EnvironmentProblem, GrpoHpcError
from grpo_hpc.jobs.checks.node_reports import TOOK_TOO_LONG, bad_node, server_nodes
from grpo_hpc.jobs.deadline import patience_s
from grpo_hpc.jobs.executors import queue_one, tell_changes
from grpo_hpc.jobs.job_environment import job_environment, record_environment
from grpo_hpc.jobs.prepare import stored_profile
from grpo_hpc.jobs.serving.server_steps import ServerStep, serving
from grpo_hpc.jobs.steps import Steps, wait
from grpo_hpc.redaction import redact_output, redacted
from grpo_hpc.runs.attempt_hold import Hold
from grpo_hpc.runs.attempts import OVER, Attempt, State, begin, fails_alike, failures_in_a_row, history
from grpo_hpc.runs.ends import OF_SLURM, End, judge, of_texts, why_cancelled, why_ended
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.start_lock import locked
from grpo_hpc.runs.submissions import Submission, submissions

_SERVERS_TELL_S = 5  # a trainer that lost its servers may end before their step does
_REQUEUE_S = 120  # of a controller that has just answered, and may refuse for good
_SERVERS = "servers"  # why the trainer shall stop: it has lost them
_SIGNALLED = "signalled"  # as the script writes it: a signal came to a step, by a person or as Slurm ends the job
_EARLY = "told to stop before training began"


def supervise(run_dir: RunDir, allocation: slurm.Allocation) -> int:
    """Run one attempt and arrange for the next one.

    Returns:
        0 when the run is over and well or goes on, 2 when a person has to mend something, 1 otherwise.
    """
    if run_dir.why_stop() != "cancelled":  # a stop from before this start has been obeyed
        run_dir.stop.unlink(missing_ok=True)
    with _wishes(run_dir, allocation) as wishes:
        with locked([run_dir]):
            submission = submissions(run_dir)[-1]
            settle(run_dir)
            if over := _over(run_dir, submission, allocation):
                _say(f"nothing to do: {over}")
                return 0
            job = (allocation.job_id, allocation.restart)
            attempt = begin(run_dir, submission.executor, allocation.nodes, submission.number, *job)
        return _attempt(run_dir, attempt, allocation, wishes)


def _over(run_dir: RunDir, submission: Submission, allocation: slurm.Allocation) -> str | None:
    """Why a submission has nothing more to do; None while it has."""
    past = [attempt for attempt in history(run_dir) if attempt.submission == submission.number]
    if past and past[-1].state in OVER:
        return f"attempt {past[-1].number} ended as {past[-1].state}"
    for job_id in takewhile(lambda job_id: job_id != allocation.job_id, submission.job_ids):
        end = slurm.patiently(partial(slurm.ended_as, job_id))
        if end == "CANCELLED":  # perhaps before its supervisor could write anything
            return f"job {job_id} of this submission was cancelled"
    return None


def _attempt(run_dir: RunDir, attempt: Attempt, allocation: slurm.Allocation, wishes: _Wishes) -> int:
    profile, hold = stored_profile(run_dir), Hold(run_dir, attempt)
    try:
        end, code = _run_steps(run_dir, profile, attempt, allocation, wishes)
    except GrpoHpcError as error:
        end, code = End("error", str(error).replace("\n", " ")), EXIT_USER_ERROR
    except OSError as error:  # a full disk, a file system that is gone: another start may find it mended
        end, code = End("crash", f"the supervisor cannot go on: {error}"), 1
    hold.require()  # what is written from here on would be written into another's records
    attempt = attempt.end(run_dir, end.state, end.reason, code)
    _say(f"attempt {attempt.number}: {end.state}: {end.reason}")
    if _go_on(run_dir, profile, allocation, attempt) or end.state in ("success", "stopped", "cancelled"):
        return 0
    return EXIT_USER_ERROR if end.state == "error" else 1


def settle(run_dir: RunDir) -> None:
    """Close the records of attempts that ended without a chance to write how; Slurm's accounting tells.

    Raises:
        EnvironmentProblem: one of them still runs in another job, or Slurm does not say whether it does.
    """
    for attempt in history(run_dir):
        if attempt.state != "running" or attempt.job_id is None:
            continue
        here = slurm.Allocation.here()
        restarted = here is not None and here.job_id == attempt.job_id
        if not restarted and slurm.patiently(partial(_left, attempt.job_id)) in slurm.ALIVE:
            raise EnvironmentProblem(
                f"attempt {attempt.number} of {run_dir.path.name} still runs in job {attempt.job_id}",
                f"This job has started nothing. Cancel the run first: grpo-hpc cancel {run_dir.path}",
            )
        states = slurm.past_states(attempt.job_id)
        known = states[attempt.restart] if attempt.restart < len(states) else None
        if known in ("RUNNING", "COMPLETING", "PENDING"):
            known = None  # the accounting is late
        state = OF_SLURM.get(known, "lost") if known else ("preempted" if restarted else "lost")
        attempt.end(run_dir, state, f"Slurm says {known}" if known else "killed without warning", None)


def _left(job_id: str) -> str | None:
    """State of a job once it does not end any more; None when Slurm has forgotten it."""
    if (state := slurm.state(job_id)) == "COMPLETING":
        raise EnvironmentProblem(f"job {job_id} is still ending")
    return state


class _Wishes:
    """What Slurm's signals ask for; a signal may come twice, and the first one counts."""

    def __init__(self, run_dir: RunDir, allocation: slurm.Allocation) -> None:
        self._run_dir, self._job_id = run_dir, allocation.job_id
        self._deadline: float | None = None  # on the monotonic clock
        self.asked: State | None = None

    def note(self, number: int, _frame: object) -> None:
        """Handle a signal: USR2 comes before the wall time, TERM from a preemption or from scancel."""
        if self.asked is None:
            self.asked = "timeout" if number == signal.SIGUSR2 else "preempted"
            with suppress(OSError):  # on a full disk the file is there, without a word in it
                self._run_dir.ask_to_stop(self.asked)

    def late(self) -> bool:
        """Whether a step that was told to stop has had all the time that there is: Slurm will soon kill everything."""
        if self.asked is None:
            return False
        if self._deadline is None:
            self._deadline = time.monotonic() + patience_s(self._job_id, stored_profile(self._run_dir).save_before_s)
        return time.monotonic() > self._deadline


@contextmanager
def _wishes(run_dir: RunDir, allocation: slurm.Allocation) -> Iterator[_Wishes]:
    wishes = _Wishes(run_dir, allocation)
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    previous = {number: signal.signal(number, wishes.note) for number in numbers}
    try:
        yield wishes
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_steps(
    run_dir: RunDir, profile: Profile, attempt: Attempt, allocation: slurm.Allocation, wishes: _Wishes
) -> tuple[End, int]:
    """Run the steps of an attempt; how it ended, and the exit code of the step that ended it."""
    folder = attempt.folder(run_dir)
    tell_changes(run_dir)  # also of what was changed while the job waited to go on
    env = job_environment(profile, attempt.number)
    record_environment(run_dir.job_script, profile, folder, env)
    steps = Steps(run_dir, allocation, env)
    steps.clean()  # of an earlier start of this job
    try:
        return _check_and_train(steps, profile, folder, wishes)
    finally:
        steps.clean()


def _check_and_train(steps: Steps, profile: Profile, folder: Path, wishes: _Wishes) -> tuple[End, int]:
    cfg = steps.run_dir.config()
    if profile.preflight.enabled:
        with steps.start("check", folder / "check.log") as process:
            code = wait(process, profile.preflight.seconds, steps.run_dir.stop.exists)
        if asked := _who_asked(steps, wishes, folder / "check.log", bool(code)):
            return End(asked, _EARLY), code or 0
        code = TOOK_TOO_LONG if code is None else code
        if found := bad_node(folder, steps.allocation.nodes, cfg, profile.preflight, code):
            return End("preflight", str(found)), code or 1
    if not server_nodes(cfg):
        return _train(steps, folder, wishes)
    with serving(steps, folder, wishes.late) as servers:
        problem = servers.await_ready(cfg.rollout.vllm_server_timeout, steps.run_dir.stop.exists)
        if asked := _who_asked(steps, wishes, folder / "servers.log", bool(problem)):
            return End(asked, _EARLY), 0
        if problem:
            return of_texts(problem) or End("crash", problem), 1
        return _train_with(servers, steps, profile, folder, wishes)


def _train(steps: Steps, folder: Path, wishes: _Wishes) -> tuple[End, int]:
    with _training(steps, folder) as (process, offset):
        code = wait(process, until=wishes.late)
    asked = _who_asked(steps, wishes, RunDir.launcher_log(folder), code != 0)
    return _judge(steps, folder, offset, code, asked), code or 0


def _train_with(servers: ServerStep, steps: Steps, profile: Profile, folder: Path, wishes: _Wishes) -> tuple[End, int]:
    """Train beside servers. When they fail the trainer may save what it has, then everything starts again."""
    with _training(steps, folder) as (process, offset):
        # told to stop, Slurm ends the servers at once, and that is no failure of theirs
        code = wait(process, until=lambda: wishes.late() if wishes.asked else servers.failure())
        if code is None and not wishes.asked:
            steps.run_dir.ask_to_stop(_SERVERS)
            wait(process, profile.save_before_s, wishes.late)
        elif code and not wishes.asked:
            wait(servers.process, _SERVERS_TELL_S)  # did the trainer fail because of them?
    asked = _who_asked(steps, wishes, RunDir.launcher_log(folder), code != 0)
    problem = None if code == 0 or asked else servers.failure()
    if problem:
        return of_texts(problem) or End("crash", problem), code or 1
    return _judge(steps, folder, offset, code, asked), code or 0


@contextmanager
def _training(steps: Steps, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The step that trains, and the size of the file of events before it."""
    events = steps.run_dir.events
    offset = events.stat().st_size if events.exists() else 0
    with steps.start("train", RunDir.launcher_log(folder)) as process:
        yield process, offset


def _judge(steps: Steps, folder: Path, offset: int, code: int | None, asked: State | None) -> End:
    resources = steps.run_dir.config().resources
    logs = [RunDir.rank_log(folder, rank) for rank in range(resources.nodes * resources.nproc_per_node)]
    return judge(steps.run_dir, code, asked, offset, RunDir.launcher_log(folder), logs)


def _who_asked(steps: Steps, wishes: _Wishes, log: Path, failed: bool) -> State | None:
    """Why the attempt was told to stop: Slurm's signal, scancel, or a person's file.

    Args:
        log: of the step that ended.
        failed: that step failed: if Slurm is ending the job, it has begun with the step, and its signal may follow.
    """
    why = steps.run_dir.why_stop()
    if why == "cancelled":
        return "cancelled"
    unclear = failed or wishes.asked == "preempted" or why == _SIGNALLED
    word = slurm.ending(steps.allocation) if unclear else None
    if asked := why_ended(wishes.asked, word, why_cancelled(log)):
        return asked
    # a step that fails is signalled by srun on its other nodes, too
    return None if why in (None, _SERVERS) or (failed and why == _SIGNALLED) else "stopped"


def _given_up(run_dir: RunDir, submission: int) -> str | None:
    """Why another start would be of no use; None while it may be."""
    past = [attempt for attempt in history(run_dir) if attempt.submission == submission]
    failures, budget = failures_in_a_row(past), run_dir.config().cluster.max_failures
    if failures and failures >= budget:
        return f"{failures} starts in a row saved nothing (max_failures is {budget})"
    return "two starts in a row failed at once and for the same reason" if fails_alike(past) else None


def _go_on(run_dir: RunDir, profile: Profile, allocation: slurm.Allocation, attempt: Attempt) -> bool:
    """Arrange for the next attempt, if there shall be one; True when the run goes on."""
    if attempt.state in OVER:
        return False
    if why := _given_up(run_dir, attempt.submission):
        _say(f"not started again: {why}")
        return False
    if attempt.state == "preflight" and not profile.preflight.exclude_node:
        return False
    if attempt.state == "preflight":
        bad = [(a, a.reason.partition(":")[0]) for a in history(run_dir) if a.state == "preflight"]
        nodes = ",".join(dict.fromkeys(node for a, node in bad if node in a.nodes))
        with locked([run_dir]):
            job_id = queue_one(run_dir, profile, [f"--exclude={nodes}"] if nodes else [])
        _say(f"job {job_id} goes on{' without ' if nodes else ''}{nodes}")
        return True
    if not profile.requeue:
        return bool(set(submissions(run_dir)[-1].job_ids[:-1]) & {allocation.job_id})  # one of a chain, not its last
    if slurm.patiently(partial(slurm.state, allocation.job_id)) == "RUNNING":  # else Slurm is requeueing it already
        slurm.patiently(partial(slurm.requeue, allocation.job_id), _REQUEUE_S)
    return True


def _say(text: str) -> None:
    """A line of the job's log; that it cannot be written is no reason to end."""
    with suppress(OSError):
        os.write(1, redacted(f"{text}\n").encode())


def main(arguments: list[str]) -> int:
    """Supervise the run in the folder ``arguments[0]``."""
    redact_output()
    try:
        allocation = slurm.Allocation.here()
        if allocation is None:
            raise EnvironmentProblem("this is no Slurm job", "Start a run with `grpo-hpc submit` or `grpo-hpc resume`.")
        return supervise(RunDir.open(arguments[0]), allocation)
    except GrpoHpcError as error:
        _say(f"{type(error).__name__}: {error}")
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
