"""Runs on this machine with a stand-in for the trainer: a short script that reports as the trainer does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grpo_hpc.config import load_run
from grpo_hpc.jobs.prepare import create_run
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.run_dir import RunDir

ROOT = Path(__file__).parents[3]
RUN = """
name: small
model: {path: m, dtype: float32}
data: {train: t.jsonl}
resources: {device: cpu, nproc_per_node: 2}
batch: {train_iters: 4}
rewards: {reward_funcs: [exact_number]}
"""
TRAINER = """
import sys, time
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.sinks import MetricSinks
run = RunDir.open(sys.argv[1])
log, sinks = EventLog(run.events), MetricSinks(run.metrics)

def step(number, reward=0.5):
    log.phase("rollout", number)
    values = {"time/step": 2.0, "reward/mean": reward, "eval/exact_number/mean": reward / 2}
    sinks.log(number, values)
    log.metrics(number, values)

"""
LAUNCH = """
import sys
from grpo_hpc.jobs.local import run_local
from grpo_hpc.runs.run_dir import RunDir
sys.exit(run_local(RunDir.open(sys.argv[1]), [sys.executable, *sys.argv[2:]]))
"""


@pytest.fixture
def new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RunDir]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)

    def make(name: str) -> RunDir:
        cfg = load_run("run.yaml", [f"name={name}"])
        return create_run(cfg, make_plan(cfg))

    return make


@pytest.fixture
def run(new_run: Callable[[str], RunDir]) -> RunDir:
    return new_run("small")


@pytest.fixture
def trainer() -> Callable[[RunDir, str], list[str]]:
    """The command of a stand-in whose body is given."""

    def write(run: RunDir, body: str) -> list[str]:
        script = run.path / "trainer.py"
        script.write_text(TRAINER + body)
        return [sys.executable, str(script), str(run.path)]

    return write


@pytest.fixture
def launcher(run: RunDir, trainer) -> Callable[[str], list[str]]:
    """The command of a launcher in a process of its own."""
    return lambda body: [sys.executable, "-c", LAUNCH, str(run.path), *trainer(run, body)[1:]]


@pytest.fixture
def launch(run: RunDir, launcher, waited) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a launcher in a process of its own and waits until the trainer has made a step."""
    started = []

    def start(body: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(launcher(body), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        waited(run.metrics.exists)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def waited() -> Callable[[Callable[[], object]], None]:
    def wait(condition: Callable[[], object], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    return wait
