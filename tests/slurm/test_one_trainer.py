"""A run has one trainer, whoever starts it again, and goes on after a controller that was away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lightruns import ended, everything, job, wait_for

from grpo_hpc.cluster import slurm
from grpo_hpc.config import dump_run, load_run
from grpo_hpc.runs.attempts import history
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.standing import standing
from grpo_hpc.runs.submissions import submissions

START = "import sys; from grpo_hpc.jobs.executors import start; from grpo_hpc.runs.run_dir import RunDir; "
START += "start(RunDir.open(sys.argv[1]))"
COMMAND = [sys.executable, "-m", "grpo_hpc.cli"]


def steps(run: RunDir) -> list[str]:
    path = run.path / "steps.txt"
    return path.read_text().splitlines() if path.exists() else []


def refused(*command: object) -> str:
    done = subprocess.run([*COMMAND, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_four_starts_queue_one_job_and_a_trainer_whose_place_is_taken_stops(submit, tmp_path):
    run = submit(start=False, steps=2000, pause=0.1)
    starts = [subprocess.Popen([sys.executable, "-c", START, run.path], stderr=subprocess.PIPE) for _ in range(4)]
    said = [process.communicate(timeout=100)[1].decode() for process in starts]
    assert sorted(process.returncode for process in starts) == [0, 1, 1, 1], said
    assert len(submissions(run)) == 1 and slurm.call(["squeue", "-h", "-o", "%i"]) == job(run)
    assert sum(f"(job {job(run)})" in text for text in said) == 3, said
    wait_for(lambda: len(steps(run)) >= 2, "step 2")
    for command in (["resume", run.path], ["submit", tmp_path / "light.yaml", "--fresh"]):
        assert f"the run light is running (job {job(run)})" in refused(*command)
    assert [path.name for path in run.path.parent.iterdir()] == ["light"]
    (run.path / "attempt_2").mkdir()
    wait_for(lambda: slurm.state(job(run)) == "FAILED", "the job to end")
    done = len(steps(run))
    assert "attempt 1 has lost its run directory: attempt_2 has begun" in everything(run)
    assert [attempt.state for attempt in history(run)] == ["running"]  # its end was not its own to write any more
    assert len(steps(run)) == done and not run.checkpoints.exists()


def test_a_second_supervisor_starts_nothing_while_the_first_one_works(submit):
    run = submit(steps=80, pause=0.1)
    wait_for(lambda: len(steps(run)) >= 2, "step 2")
    other = slurm.sbatch(run.job_script)  # as one that was queued behind the back of the run directory
    wait_for(lambda: slurm.state(other) == "FAILED", "the second job to end")
    assert f"attempt 1 of light still runs in job {job(run)}" in (run.path / f"slurm-{other}.log").read_text()
    assert [attempt.number for attempt in ended(run, 1)] == [1]
    assert history(run)[0].state == "success", everything(run)


def test_a_controller_that_is_away_when_an_attempt_ends(submit):
    """And what is changed in the run file meanwhile is obeyed or refused by the next attempt."""
    run = submit(steps=60, pause=0.1, fault={"kind": "raise", "step": 15, "attempt": "attempt_1"})
    wait_for(lambda: len(steps(run)) >= 5, "step 5")
    configuration = os.environ["SLURM_CONF"]
    os.kill(int((Path(configuration).parent / "slurmctld.pid").read_text()), signal.SIGTERM)
    try:
        wait_for_end_without_slurm(run)
        run.run_file.write_text(dump_run(load_run(run.run_file, ["seed=7"])))
        log = run.path / f"slurm-{job(run)}.log"
        wait_for_text(log, "asking again")
    finally:
        subprocess.run(["slurmctld", "-f", configuration], check=True)
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("crash", "error"), everything(run)
    assert "seed: 42 -> 7" in second.reason
    found = standing(run)
    assert (found.state, found.known) == ("error", True)


def wait_for_end_without_slurm(run: RunDir) -> None:
    deadline = time.monotonic() + 120
    while history(run)[0].state == "running":
        assert time.monotonic() < deadline, everything(run)
        time.sleep(0.3)


def wait_for_text(log: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)
