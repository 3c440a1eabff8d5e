"""The benchmark report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_hpc.observe.sinks import MetricSinks

TOOL = Path(__file__).parents[3] / "tools" / "report_quickstart.py"
RUN_FILE = """
name: {name}
seed: {seed}
model: {{path: models/tiny, dtype: float32}}
data: {{train: t.jsonl}}
resources: {{device: cpu, nproc_per_node: 2}}
batch: {{global_batch_size: 64, num_generations: 8, train_iters: 10}}
rewards: {{reward_funcs: [exact_number]}}
"""


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / f"run-{seed}", seed) for seed in (1, 2)]


def make_run(path, seed):
    sinks = MetricSinks(path / "metrics.jsonl")
    sinks.log(0, {"eval/exact_number/mean": 0.4})
    for step in range(1, 11):
        sinks.log(step, {"reward/mean": 0.04 * step * seed, "time/step": 10.0, "time/train": 6.0, "time/rollout": 3.0})
    sinks.log(10, {"eval/exact_number/mean": 0.8})
    (path / "run.yaml").write_text(RUN_FILE.format(name=path.name, seed=seed))
    lock = {"created": "2026-01-02T03:04:05+00:00", "packages": {"torch": "2.13.0"}}
    (path / "lock.json").write_text(json.dumps(lock))
    starts = [(100, "start"), (110, "train"), (500, "start"), (520, "train")]  # 10 s, a long pause, 20 s
    events = [{"t": at, "event": "phase", "name": name, "step": 0} for at, name in starts]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def make_report(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def test_a_report_of_two_runs(runs, tmp_path):
    pytest.importorskip("matplotlib")
    done = make_report(tmp_path / "out" / "quick_cpu", *runs)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "quick_cpu.md").read_text()
    assert "| run-1 | 1 | 10 | 0.060 | 0.380 | 6.3 | 0.400 | 0.800 | 30 s |" in text
    assert "| **mean** |  |  | 0.090 | 0.570 | 6.3 | 0.400 | 0.800 | 30 s |" in text
    assert "| rollout | train | whole step |" in text and "| 3.00 | 6.00 | 10.00 |" in text
    assert "8 prompts x 8 completions" in text and "torch 2.13.0" in text
    assert "grpo-hpc submit configs/quickstart.yaml name=run-2 seed=2" in text
    assert (tmp_path / "out" / "quick_cpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_steps_is_refused(runs, tmp_path):
    (runs[1] / "metrics.jsonl").write_text("")
    done = make_report(tmp_path / "report", *runs)
    assert done.returncode == 2 and "run-2 holds no steps" in done.stderr and "Traceback" not in done.stderr
