"""Run directories as the trainer leaves them, made with the package's own writers; values are simple functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo_hpc.config import load_run
from grpo_hpc.observe.completions import CompletionLog, member
from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.plan.make import make_plan
from grpo_hpc.runs.attempts import begin
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.submissions import note_submission

ROOT = Path(__file__).parents[2]
PHASES = {"sync": 0.5, "rollout": 4.0, "reward": 0.25, "logprob": 1.0, "train": 3.0}


def record(
    folder: Path,
    name: str = "demo",
    *,
    steps: int = 40,
    rate: float = 0.1,
    more: int = 0,
    completions: Iterable[Mapping[str, Any]] | None = None,
    changed: Iterable[str] = (),
) -> RunDir:
    """One finished run of ``steps`` steps.

    Args:
        rate: how fast the reward grows: at step k it is ``1 - exp(-rate k)``.
        more: further metrics, ``extra/0`` and so on.
        completions: rows of step 1; by default 2 prompts with 4 completions for every tenth step.
    """
    cfg = load_run(ROOT / "configs" / "quickstart_gpu.yaml", [f"name={name}", f"output_dir={folder}", *changed])
    run = RunDir.create(cfg, make_plan(cfg))
    attempt = begin(run, "local", ["node-1"], note_submission(run, "local").number)
    events, sinks = EventLog(run.events), MetricSinks(run.metrics)
    events.phase("start", 0)
    sinks.log(0, {"eval/exact_number/mean": 0.25})
    for step in range(1, steps + 1):
        events.phase("rollout", step)
        events.phase("train", step)
        values = metrics_of(step, rate) | {f"extra/{k}": math.sin(step / (k + 1)) for k in range(more)}
        sinks.log(step, values)
        events.metrics(step, values)
    events.finished({"lines": []})
    log = CompletionLog(run.completions)
    for step in range(1, steps + 1, 10) if completions is None else [1]:
        log.write(step, [member(completions_of(step) if completions is None else completions)])
    attempt.end(run, "success", "finished", 0)
    return run


def metrics_of(step: int, rate: float) -> dict[str, float]:
    """Metrics of one step: eight seconds and three quarters, three quarters of one in no phase."""
    return {
        "reward/mean": 1 - math.exp(-rate * step),
        "loss": float("nan") if step == 5 else 1 / step,
        "kl": 1e-4 * step,
        "grad_norm": 1 + math.cos(step / 3),
        "learning_rate": 1e-6,
        "completions/mean_length": 100.0 + step,
        "memory/peak_gib": 60.0 + step / 100,
        "memory/peak_gib/train": 60.0,
        "time/step": sum(PHASES.values()) + 0.75 * (step % 2),
        **{f"time/{phase}": seconds for phase, seconds in PHASES.items()},
    }


def completions_of(step: int, prompts: int = 2, samples: int = 4) -> list[dict[str, Any]]:
    """Rows of a step; of a prompt's completions the first is right."""
    return [
        row(position, sample, f"step {step}: the answer is {position + sample}", 1.0 if sample == 0 else 0.0)
        for position in range(prompts)
        for sample in range(samples)
    ]


def row(position: int, sample: int, text: str, reward: float | None = 0.0, **changed: Any) -> dict[str, Any]:
    """One completion as the trainer records it."""
    return {
        "prompt_id": f"train:{position}",
        "position": position,
        "sample": sample,
        "messages": [{"role": "user", "content": f"What is {position} + 0?"}],
        "completion": text,
        "reward": reward,
        "rewards": {"exact_number": reward, "short": 0.5},
        "failures": {},
        "advantage": 1.5 if reward else -0.5,
        "dropped": False,
        "tokens": len(text),
        "finish_reason": "stop" if sample else "length",
        "mean_rollout_logprob": -0.5,
        "weight_version": 0,
    } | changed
