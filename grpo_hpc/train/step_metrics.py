"""Metrics of the loop, and the one place where the first rank writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from grpo_hpc.data.rows import Row
from grpo_hpc.observe.completions import CompletionLog, first_rows
from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.rollout.engine import Synced
from grpo_hpc.rollout.sample import FAILURES, LENGTH, REASONS, Key, episodes, keys_of
from grpo_hpc.rollout.scoring import Scored
from grpo_hpc.train.experience import Experience
from grpo_hpc.train.rollout_source import Rollout

_SHOWN = 8  # completions of a rollout that reporters show


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

    def completions(self, step: int, members: Sequence[bytes]) -> None:
        """Every rank's :func:`completion_rows`, compressed; ``step`` is the first optimizer step made from them."""
        if self.log and self.sinks:
            self.log.write(step, members)
            self.sinks.completions(step, first_rows(members, _SHOWN))

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


def rollout_metrics(rollout: Rollout, rewards: Sequence[str], *, dynamic: bool) -> dict[str, float]:
    """Rewards and lengths of everything that was sampled, over all ranks; with ``dynamic`` what was kept of it.

    Args:
        rewards: names of the reward functions.
    """
    sampled = rollout.sampled
    scored = sampled["reward"][~np.isnan(sampled["reward"])]
    lengths, ended = sampled["sampled"], sampled["sampled"][sampled["end"] != LENGTH]
    metrics = {
        "reward/zero_variance_groups": rollout.alike,
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1.0 - len(ended) / len(sampled),
        "completions/tokens": float(lengths.sum()),
        "completions/given_up": float((~sampled["answers"]).sum()),
    }
    if len(scored):
        metrics |= {"reward/mean": float(scored.mean()), "reward/std": float(scored.std())}
    if len(ended):
        metrics["completions/mean_terminated_length"] = float(ended.mean())
    if dynamic:
        metrics |= {
            "dynamic/rounds": float(rollout.rounds),
            "dynamic/dropped_groups": float(rollout.dropped),
            "dynamic/filled_groups": float(rollout.filled),
            "dynamic/carried_completions": float(len(np.unique(rollout.surplus[["position", "sample"]]))),
        }
    if sampled["environment_s"].any():
        metrics |= _episode_metrics(sampled)
    return metrics | _reward_columns(sampled, rewards, "rewards") | _reward_failures(sampled, rewards)


def _episode_metrics(sampled: np.ndarray) -> dict[str, float]:
    """What happened in episodes with an environment or an agent."""
    averaged = ("turns", "tool_calls", "tool_failures", "environment_s", "policy_s")
    ends = np.bincount(sampled["end"], minlength=len(REASONS))
    return {f"episodes/{name}": float(sampled[name].mean()) for name in averaged} | {
        "episodes/too_many_turns": float(ends[REASONS.index("turns")]),
        "episodes/failed": float((sampled["failed"] > 0).sum()),
    }


def evaluation_metrics(table: np.ndarray, rewards: Sequence[str]) -> dict[str, float]:
    """Mean of every reward column over the held-out rows."""
    table = episodes(table)
    return _reward_columns(table, rewards, "eval", deviation=False) | {
        "eval/mean_length": float(table["sampled"].mean())
    }


def sync_metrics(synced: Synced, seconds: float) -> dict[str, float]:
    """How fast one engine got its weights, and how many of them were looked at afterwards."""
    return {"throughput/sync_gb_per_s": synced.bytes / 1e9 / seconds, "sync/tensors_compared": float(synced.compared)}


def step_metrics(
    values: Mapping[str, float],
    trained: np.ndarray,
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
    metrics["throughput/train_tokens_per_s"] = float(trained["tokens"].sum()) / phases["train"]
    if rollout:
        metrics["throughput/rollout_tokens_per_s"] = rollout["completions/tokens"] / phases["rollout"]
    return metrics | dict(rollout)


def completion_rows(
    rollout: Rollout,
    experience: Experience,
    rewards: Sequence[str],
    row_at: Callable[[int], Row],
    by_token: Callable[[Key, Scored], Mapping[str, str] | None],
) -> Iterator[dict[str, object]]:
    """What is kept for people of this rank's completions, in the order of their keys; branches are one completion.

    Those that are carried over are written with the rollout that uses them.

    Args:
        row_at: gives the row of the data set that completions of a position answer.
        by_token: what is recorded of a completion's tokens; None for nothing.
    """
    used = dict(zip(keys_of(experience.table), experience.table["advantage"].tolist(), strict=True))
    later = set(keys_of(rollout.surplus))
    for _, branches in groupby(sorted(rollout.scored.keys() - later), lambda key: key[:2]):
        key, *others = branches
        scored, row = rollout.scored[key], row_at(key.position)
        samples = [scored.sample, *(rollout.scored[other].sample for other in others)]
        logprobs, versions = (np.concatenate([getattr(s, name) for s in samples]) for name in ("logprobs", "versions"))
        yield {
            "prompt_id": row.prompt_id,
            "position": key.position,
            "sample": key.sample,
            "messages": scored.messages or row.messages,
            "completion": scored.text,
            "reward": scored.reward,
            "rewards": {name: scored.rewards.get(name) for name in rewards},
            "failures": scored.failures,
            "advantage": used.get(key),
            "dropped": key not in used,
            "tokens": len(logprobs),
            "finish_reason": samples[-1].reason,
            "mean_rollout_logprob": float(logprobs.mean()) if len(logprobs) else None,
            "weight_version": int(versions.min()) if len(versions) else None,
            **_told_of_episode(scored),
            **({"by_token": values} if (values := by_token(key, scored)) else {}),
        }


def _told_of_episode(scored: Scored) -> dict[str, object]:
    """What there is to tell where an environment or an agent took part."""
    if not scored.turns and not scored.failure:
        return {}
    seconds = {name: round(getattr(scored, name), 3) for name in ("environment_s", "policy_s")}
    return {"turns": scored.turns, "environment_failure": scored.failure, **scored.counts, **seconds}


def _reward_columns(
    table: np.ndarray, rewards: Sequence[str], prefix: str, *, deviation: bool = True
) -> dict[str, float]:
    metrics = {}
    for name, column in zip(rewards, table["rewards"].T, strict=True):
        values = column[~np.isnan(column)]
        if len(values):
            metrics[f"{prefix}/{name}/mean"] = float(values.mean())
        if len(values) and deviation:
            metrics[f"{prefix}/{name}/std"] = float(values.std())
    return metrics


def _reward_failures(table: np.ndarray, rewards: Sequence[str]) -> dict[str, float]:
    """Per reward function, completions that it failed on, and those of them that ran out of time."""
    metrics = {}
    for name, kinds in zip(rewards, table["failures"].T, strict=True):
        metrics[f"rewards/{name}/failures"] = float((kinds > 0).sum())
        metrics[f"rewards/{name}/timeouts"] = float((kinds == FAILURES.index("timeout")).sum())
    return metrics
