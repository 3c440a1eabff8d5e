"""A run has one trainer, whoever starts it again, and goes on after a controller that was away."""

from __future__ import annotations

import os
import subprocess
import sys
from shutil import which

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


def test_a_controller_that_is_away_when_an_attempt_ends(submit, tmp_path, monkeypatch):
    """And what is changed in the run file meanwhile is obeyed or refused by the next attempt.

    The supervisor's ``scontrol`` says what it says then: without the real controller every command takes a minute.
    """
    away, scontrol = tmp_path / "away", tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    said = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    scontrol.write_text(f'#!/bin/sh\n[ -e {away} ] && echo "{said}" >&2 && exit 1\nexec {which("scontrol")} "$@"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    run = submit(steps=60, pause=0.1, fault={"kind": "raise", "step": 15, "attempt": "attempt_1"})
    wait_for(lambda: len(steps(run)) >= 5, "step 5")
    away.touch()
    log = run.path / f"slurm-{job(run)}.log"
    wait_for(lambda: f"asking again: scontrol refused: {said}" in log.read_text(), "the controller to be asked again")
    assert [attempt.state for attempt in history(run)] == ["crash"]
    run.run_file.write_text(dump_run(load_run(run.run_file, ["seed=7"])))
    away.unlink()
    first, second = ended(run, 2)
    assert (first.state, second.state) == ("crash", "error"), everything(run)
    assert "seed: 42 -> 7" in second.reason
    found = standing(run)
    assert (found.state, found.known) == ("error", True)
