"""Metrics of the loop, and the one place where the first rank writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch

from grpo_hpc.algo.advantages import zero_variance_fraction
from grpo_hpc.data.rows import Row
from grpo_hpc.observe.completions import CompletionLog
from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train.policy import StepResult


@dataclass
class Reporter:
    """Writes what happened; on all ranks but the first its outputs are None and nothing is written."""

    events: EventLog | None = None
    sinks: MetricSinks | None = None
    log: CompletionLog | None = None

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One optimizer step's metrics, to every sink and to the live view."""
        if self.sinks and self.events:
            self.sinks.log(step, metrics)
            self.events.metrics(step, dict(metrics))

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation under the weights after ``step`` optimizer steps."""
        if self.sinks and self.events:
            self.sinks.log(step, metrics)
            self.events.metrics(step, dict(metrics))

    def completions(self, step: int, trajectories: Sequence[Trajectory], rows: Mapping[int, Row]) -> None:
        """One row per completion; ``step`` is the first optimizer step made from them."""
        if self.log:
            self.log.write(step, (_completion_row(t, rows[t.position]) for t in trajectories))

    def rewind(self, step: int) -> None:
        """Forget what was written after ``step``: a resumed run writes it again."""
        if self.sinks:
            self.sinks.rewind(step)
        if self.log:
            self.log.rewind(step)


def rollout_metrics(trajectories: Sequence[Trajectory], expected: int) -> dict[str, float]:
    """Rewards and lengths of one rollout, over all ranks."""
    rewards = [t.reward for t in trajectories]
    lengths = [len(t.response_tokens) for t in trajectories]
    prompt_ids = [t.prompt_id for t in trajectories]
    metrics = {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/zero_variance_groups": zero_variance_fraction(torch.tensor(rewards), prompt_ids),
        "completions/mean_length": fmean(lengths),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": fmean(t.finish_reason == "length" for t in trajectories),
        "completions/tokens": float(sum(lengths)),
    }
    return metrics | _reward_columns(trajectories, "rewards")


def evaluation_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Mean of every reward column over the held-out rows."""
    return _reward_columns(trajectories, "eval") | {
        "eval/mean_length": fmean(len(t.response_tokens) for t in trajectories)
    }


def step_metrics(
    result: StepResult,
    trained: Sequence[Trajectory],
    rollout: Mapping[str, float],
    phases: Mapping[str, float],
    seconds: float,
) -> dict[str, float]:
    """Loss and speed of one optimizer step.

    Args:
        trained: the completions that went through forward and backward, on all ranks.
        rollout: metrics of the rollout that was sampled for it; empty when an earlier one was used.
        phases: seconds per phase since the step before.
        seconds: of the whole step.
    """
    metrics = {
        "loss": result.loss,
        "kl": result.kl,
        "entropy": result.entropy,
        "clip_ratio/region_mean": result.clip_fraction,
        "ratio/mean_abs_error": result.ratio_error,
        "mismatch/logprob_abs_diff": result.mismatch,
        "grad_norm": result.grad_norm,
        "learning_rate": result.learning_rate,
        "tokens/scored": float(result.tokens),
        "time/step": seconds,
    }
    metrics |= {f"time/{name}": spent for name, spent in phases.items()}
    metrics["throughput/train_tokens_per_s"] = sum(t.tokens for t in trained) / phases["train"]
    if rollout:
        metrics["throughput/rollout_tokens_per_s"] = rollout["completions/tokens"] / phases["rollout"]
    return metrics | dict(rollout)


def _reward_columns(trajectories: Sequence[Trajectory], prefix: str) -> dict[str, float]:
    metrics = {}
    for name in trajectories[0].rewards:
        values = [value for t in trajectories if (value := t.rewards[name]) is not None]
        if values:
            metrics[f"{prefix}/{name}/mean"] = fmean(values)
    return metrics


def _completion_row(t: Trajectory, row: Row) -> dict[str, object]:
    return {
        "prompt_id": t.prompt_id,
        "sample": t.sample,
        "messages": row.messages,
        "completion": t.text,
        "reward": t.reward,
        "rewards": t.rewards,
        "advantage": t.advantage,
        "tokens": len(t.response_tokens),
        "finish_reason": t.finish_reason,
        "mean_rollout_logprob": fmean(t.rollout_logprobs),
        "weight_version": t.weight_version,
    }
