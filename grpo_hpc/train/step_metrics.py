"""Metrics of the loop, and the one place where the first rank writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch

from grpo_hpc.algo.advantages import zero_variance_fraction
from grpo_hpc.data.rows import Row
from grpo_hpc.observe.completions import CompletionLog, member
from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.rollout.engine import Synced
from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train.rollout_source import Rollout


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

    def completions(self, step: int, rollout: Rollout, rows: Mapping[int, Row]) -> None:
        """One row per completion; ``step`` is the first optimizer step made from them.

        Completions that are carried over are written with the rollout that uses them.
        """
        if self.log:
            used, later = {t.key for t in rollout.used}, {t.key for t in rollout.surplus}
            dropped = [t for t in rollout.sampled if t.key not in used | later]
            everything = sorted(rollout.used + dropped, key=lambda t: t.key)
            records = (_completion_row(t, rows[t.position], t.key not in used) for t in everything)
            self.log.write(step, [member(records)])

    def message(self, text: str) -> None:
        """Something that a person should know."""
        if self.events:
            self.events.message(text)

    def rewind(self, step: int) -> None:
        """Forget what was written after ``step``: a resumed run writes it again."""
        if self.sinks:
            self.sinks.rewind(step)
        if self.log:
            self.log.rewind(step)

    def close(self) -> None:
        """Let every sink finish."""
        if self.sinks:
            self.sinks.close()


def rollout_metrics(rollout: Rollout, *, dynamic: bool) -> dict[str, float]:
    """Rewards and lengths of everything that was sampled, over all ranks; with ``dynamic`` what was kept of it."""
    sampled = rollout.sampled
    rewards = torch.tensor([t.reward for t in sampled], dtype=torch.float64)
    scored = rewards[~rewards.isnan()].tolist()
    lengths = [len(t.response_tokens) for t in sampled]
    ended = [len(t.response_tokens) for t in sampled if t.finish_reason != "length"]
    metrics = {
        "reward/zero_variance_groups": zero_variance_fraction(rewards, [t.prompt_id for t in sampled]),
        "completions/mean_length": fmean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1.0 - len(ended) / len(sampled),
        "completions/tokens": float(sum(lengths)),
    }
    if scored:
        metrics |= {"reward/mean": fmean(scored), "reward/std": pstdev(scored)}
    if ended:
        metrics["completions/mean_terminated_length"] = fmean(ended)
    if dynamic:
        metrics |= {
            "dynamic/rounds": float(rollout.rounds),
            "dynamic/dropped_groups": float(rollout.dropped),
            "dynamic/filled_groups": float(rollout.filled),
            "dynamic/carried_completions": float(len(rollout.surplus)),
        }
    return metrics | _reward_columns(sampled, "rewards") | _reward_failures(sampled)


def evaluation_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Mean of every reward column over the held-out rows."""
    return _reward_columns(trajectories, "eval", deviation=False) | {
        "eval/mean_length": fmean(len(t.response_tokens) for t in trajectories)
    }


def staleness(trained: Sequence[Trajectory], step: int) -> dict[str, float]:
    """Optimizer steps between the weights that sampled and those that are updated after ``step`` steps."""
    ages = [step - t.weight_version for t in trained]
    return {"staleness/mean": fmean(ages), "staleness/max": float(max(ages))}


def sync_metrics(synced: Synced, seconds: float) -> dict[str, float]:
    """How fast one engine got its weights, and how many of them were looked at afterwards."""
    return {"throughput/sync_gb_per_s": synced.bytes / 1e9 / seconds, "sync/tensors_compared": float(synced.compared)}


def step_metrics(
    values: Mapping[str, float],
    trained: Sequence[Trajectory],
    rollout: Mapping[str, float],
    phases: Mapping[str, float],
    seconds: float,
) -> dict[str, float]:
    """Loss and speed of one optimizer step.

    Args:
        values: what the policy said about its update.
        trained: the completions that went through forward and backward, on all ranks.
        rollout: metrics of the rollout that was sampled for it; empty when an earlier one was used.
        phases: seconds per phase since the step before.
        seconds: of the whole step.
    """
    metrics = dict(values) | {"time/step": seconds}
    metrics |= {f"time/{name}": spent for name, spent in phases.items()}
    metrics["throughput/train_tokens_per_s"] = sum(t.tokens for t in trained) / phases["train"]
    if rollout:
        metrics["throughput/rollout_tokens_per_s"] = rollout["completions/tokens"] / phases["rollout"]
    return metrics | dict(rollout)


def _reward_columns(trajectories: Sequence[Trajectory], prefix: str, *, deviation: bool = True) -> dict[str, float]:
    metrics = {}
    for name in trajectories[0].rewards:
        values = [value for t in trajectories if (value := t.rewards[name]) is not None]
        if values:
            metrics[f"{prefix}/{name}/mean"] = fmean(values)
        if values and deviation:
            metrics[f"{prefix}/{name}/std"] = pstdev(values)
    return metrics


def _reward_failures(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Per reward function, completions that it failed on, and those of them that ran out of time."""
    metrics = {}
    for name in trajectories[0].rewards:
        kinds = [t.failures[name].partition(":")[0] for t in trajectories if name in t.failures]
        metrics[f"rewards/{name}/failures"] = float(len(kinds))
        metrics[f"rewards/{name}/timeouts"] = float(kinds.count("timeout"))
    return metrics


def _completion_row(t: Trajectory, row: Row, dropped: bool) -> dict[str, object]:
    return {
        "prompt_id": t.prompt_id,
        "sample": t.sample,
        "messages": row.messages,
        "completion": t.text,
        "reward": t.reward,
        "rewards": t.rewards,
        "failures": t.failures,
        "advantage": None if dropped else t.advantage,
        "dropped": dropped,
        "tokens": len(t.response_tokens),
        "finish_reason": t.finish_reason,
        "mean_rollout_logprob": fmean(t.rollout_logprobs),
        "weight_version": t.weight_version,
    }
