"""What a run survives, and what it calls by its name when it does not."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightruns import ON_SERVERS, PAYLOAD, empty_queue, ended, everything, job, wait_for

from grpo_hpc.cluster import slurm
from grpo_hpc.jobs.executors import start
from grpo_hpc.jobs.prepare import move_run, stored_profile
from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import standing
from grpo_hpc.runs.submissions import submissions


def steps(run: RunDir) -> list[str]:
    path = run.path / "steps.txt"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_step(run: RunDir, step: int, attempt: int = 1) -> None:
    try:
        wait_for(lambda: f"attempt_{attempt} {step}" in steps(run), f"step {step} of attempt {attempt}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{everything(run)}") from None


def states(run: RunDir, attempts: int, seconds: float = 120) -> list[str]:
    return [attempt.state for attempt in ended(run, attempts, seconds)]


def test_a_killed_rank_is_a_crash_and_is_tried_again(submit):
    run = submit(fault={"kind": "kill", "rank": 3})
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("crash", "success"), everything(run)
    assert "rank 3 was killed by signal 9 (SIGKILL)" in first.reason
    assert (first.job_id, first.restart, second.restart) == (second.job_id, 0, 1)
    assert run.latest_attempt().name == "attempt_2"


def test_the_failure_budget_ends_a_loop(submit):
    run = submit(run={"max_failures": 2}, fault={"kind": "raise", "attempt": None})
    assert states(run, 2) == ["crash", "crash"]
    assert "RuntimeError: the payload was told to fail" in history(run)[1].reason
    wait_for(lambda: slurm.state(job(run)) == "FAILED", "the job to fail")
    assert len(history(run)) == 2


def test_the_time_limit_saves_and_requeues(submit):
    # Slurm sends the signal up to a minute early: the first start has work for longer than that, the second for seconds
    run = submit(profile={"time_limit": "1:00", "save_before_s": 20}, steps=600, pause=0.2)
    first, second = ended(run, 2, 200)
    assert (first.state, first.exit_code) == ("timeout", 0), everything(run)
    assert 0 < first.last_step == second.first_step
    done = [int(line.split()[1]) for line in steps(run)]
    assert done == list(range(1, len(done) + 1))  # no step is lost, none is made twice


def test_a_step_longer_than_the_time_to_save_is_ended_recorded_and_requeued(submit):
    """The ranks never obey: at the limit Slurm would kill them with the supervisor, and nobody would know."""
    limit = {"time_limit": "1:00", "save_before_s": 20}
    run = submit(profile=limit, sections=ON_SERVERS, steps=300, pause=0.3, deaf="attempt_1", save_at=3)
    (first,) = ended(run, 1, 150)
    assert first.state == "timeout", everything(run)
    wait_for(lambda: len(history(run)) == 2, "the next start")
    second = history(run)[1]  # it may be told to stop, too: Slurm's warning comes up to a minute early
    assert first.reason.startswith("ended before it had saved what came after step 3; a step or a rollout took longer")
    assert (first.job_id, first.restart + 1) == (second.job_id, second.restart)
    assert first.last_step == second.first_step == 3


def test_signals_that_come_twice_save_once(submit):
    run = submit(steps=60, pause=0.1)
    wait_for_step(run, 3)
    for _ in range(3):
        slurm.call(["scancel", "--signal=USR2", "--full", job(run)])  # the supervisor, srun, torchrun and the ranks
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("timeout", "success"), everything(run)
    assert first.last_step == second.first_step >= 3


def test_preemption_requeues(submit):
    run = submit(profile={"partition": "low"}, steps=20, pause=0.2)
    wait_for_step(run, 2)
    slurm.call(["sbatch", "-p", "high", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3"])
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("preempted", "success"), everything(run)
    assert second.restart == 1


def test_a_chain_goes_on_where_requeue_is_forbidden(submit):
    run = submit(profile={"partition": "drop", "requeue": False, "chain": 3}, steps=20, pause=0.2)
    wait_for_step(run, 2)
    slurm.call(["sbatch", "-p", "high", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3"])
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("preempted", "success"), everything(run)
    assert first.job_id != second.job_id
    wait_for(lambda: slurm.state(job(run)) == "COMPLETED", "the last job of the chain")
    assert len(history(run)) == 2  # it found nothing to do


def test_a_failed_node_is_named_and_left(submit):
    run = submit(steps=30, pause=0.3)
    wait_for_step(run, 2)
    try:
        for state in ("DOWN", "DRAIN"):  # a node that is only DOWN comes back by itself, as its daemon still runs
            slurm.call(["scontrol", "update", "NodeName=node2", f"State={state}", "Reason=test"])
        first, second = ended(run, 2)
    finally:
        subprocess.run(["scontrol", "update", "NodeName=node2", "State=RESUME"], check=False)  # it may be back already
    assert (first.state, second.state) == ("node_failure", "success"), everything(run)
    assert "node2" not in second.nodes


def test_a_drained_node_ends_nothing_and_gets_nothing(submit):
    run = submit(steps=30, pause=0.1)
    wait_for_step(run, 2)
    try:
        slurm.call(["scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=test"])
        other = submit("other")
        assert states(run, 1) == ["success"]
        assert ended(other, 1)[0].nodes == ["node2", "node3"]
    finally:
        slurm.call(["scontrol", "update", "NodeName=node1", "State=RESUME"])


def test_scancel_is_final(submit):
    run = submit(steps=500, pause=0.1)
    wait_for_step(run, 2)
    slurm.call(["scancel", job(run)])
    (first,) = ended(run, 1)
    assert first.state == "cancelled", everything(run)
    wait_for(lambda: slurm.state(job(run)) == "CANCELLED", "the job to end")


def test_out_of_memory_is_no_crash_and_is_not_tried_again(submit):
    run = submit(profile={"memory": "2000M"}, fault={"kind": "eat", "rank": 2})
    (first,) = ended(run, 1)
    assert first.state == "out_of_memory", everything(run)
    wait_for(lambda: slurm.state(job(run)) == "FAILED", "the job to end")
    assert len(history(run)) == 1


def test_a_mistake_that_the_trainer_names_is_not_tried_again(submit):
    run = submit(fault={"kind": "mistake"})
    (first,) = ended(run, 1)
    assert (first.state, first.reason) == ("error", "ConfigError: the payload was told wrong things"), everything(run)
    wait_for(lambda: slurm.state(job(run)) == "FAILED", "the job to end")
    assert len(history(run)) == 1


def test_a_run_goes_on_with_any_executor(submit):
    run = submit(sections={"resources": {"nodes": 1}}, steps=60, pause=0.1, slow=2)
    for number, executor in enumerate(("submitit", "local"), 1):
        wait_for(lambda n=number: any(line.startswith(f"attempt_{n} ") for line in steps(run)), "a step")
        slurm.call(["scancel", job(run)])
        ended(run, number)
        profile = stored_profile(run).model_copy(update={"executor": executor})
        move_run(run, profile, program=(str(PAYLOAD),))
        assert start(run) == 0
    attempts = history(run)
    assert [attempt.executor for attempt in attempts] == ["slurm", "submitit", "local"]
    assert [attempt.state for attempt in attempts] == ["cancelled", "cancelled", "success"], everything(run)
    assert [a.first_step for a in attempts[1:]] == [a.last_step for a in attempts[:2]]
    assert [int(line.split()[1]) for line in steps(run)] == list(range(1, 61))


@pytest.mark.parametrize("moment", ["slurm-{job}.log", "latest/check.log", "latest/launcher.log"])
def test_a_cancel_while_a_step_starts_is_final_too(submit, moment):
    """The second job of the chain, which is not cancelled, finds nothing to do."""
    chain = {"requeue": False, "chain": 2, "preflight": {"enabled": True, "free_gib": 0.01}}
    run = submit(profile=chain, steps=500, pause=0.1)
    first, second = submissions(run)[-1].job_ids
    wait_for(lambda: (run.path / moment.format(job=first)).exists(), moment, pause=0.01)
    slurm.call(["scancel", first])
    wait_for(lambda: slurm.state(second) == "COMPLETED", "the second job")
    assert {attempt.state for attempt in history(run)} <= {"cancelled"}, everything(run)
    wait_for(lambda: standing(run).state == "cancelled", f"the accounting to say so\n{everything(run)}", 20)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 4 MB, away from pytest's own folders, which it could not clear while this is mounted."""
    with tempfile.TemporaryDirectory(prefix="small-disk-", dir="/tmp") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
            empty_queue()  # jobs write there
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_recorded_and_the_job_goes_on_when_there_is_room(submit, small_disk):
    """The supervisor's own log is on that disk, too."""
    waste = small_disk / "waste"
    run = submit(folder=str(small_disk), fault={"kind": "fill", "file": str(waste), "rank": 1})
    (first,) = ended(run, 1)
    assert first.state == "crash", everything(run)
    assert first.reason.endswith(f"the disk of {run.path} is full")
    waste.unlink()  # Slurm waits some seconds before it starts a job again
    assert states(run, 2) == ["crash", "success"], everything(run)


def test_a_signal_to_the_steps_alone_saves_and_stops(submit):
    run = submit(steps=60, pause=0.1)
    wait_for_step(run, 3)
    slurm.call(["scancel", "--signal=TERM", job(run)])
    (first,) = ended(run, 1)
    assert (first.state, first.exit_code) == ("stopped", 0), everything(run)
    assert first.last_step >= 3
    wait_for(lambda: slurm.state(job(run)) == "COMPLETED", "the job to end well")


def test_two_jobs_share_their_nodes(submit):
    runs = [submit(name, steps=40, pause=0.1) for name in ("one", "two")]
    for run in runs:
        wait_for_step(run, 1)
    assert all(len(history(run)) == 1 and history(run)[0].state == "running" for run in runs)  # at the same time
    assert {tuple(ended(run, 1)[0].nodes) for run in runs} == {("node1", "node2")}
    assert [history(run)[0].state for run in runs] == ["success", "success"]
    ports = {
        path.read_text().partition('"MASTER_PORT": "')[2][:5] for run in runs for path in run.path.glob("*/where*")
    }
    assert len(ports) == 2
