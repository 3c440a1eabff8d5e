"""The GRPO loop: sample, score, advantages, old and reference log-probabilities, optimizer steps, weight sync."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from grpo_hpc.algo.advantages import group_advantages
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.data.rows import Row
from grpo_hpc.data.sampler import PromptSampler
from grpo_hpc.models.hf_folder import write_hf_folder
from grpo_hpc.models.policy import PolicyModel
from grpo_hpc.rollout.collect import Collector, Prompt, Tokenizer, gather_lists
from grpo_hpc.rollout.engine import Engine
from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train import checkpoint
from grpo_hpc.train.checkpoint import TrainerState
from grpo_hpc.train.microbatch import PackedBatch, pack
from grpo_hpc.train.packing import MicroBatch, packing_metrics, with_gradient
from grpo_hpc.train.parallel import packing_of
from grpo_hpc.train.platform import Platform
from grpo_hpc.train.policy import DTYPES, StepResult, TrainedPolicy, forward_logprobs
from grpo_hpc.train.report import Reporter, evaluation_metrics, rollout_metrics, step_metrics
from grpo_hpc.train.watch import PhaseClock, StopRequest


@dataclass
class Parts:
    """What a trainer is put together from (see :mod:`grpo_hpc.train.entry`)."""

    policy: TrainedPolicy
    reference: PolicyModel | None
    engine: Engine
    collector: Collector
    tokenizer: Tokenizer
    rows: list[Row]
    eval_rows: list[Row]
    clock: PhaseClock
    stop: StopRequest
    reporter: Reporter


class Trainer:
    """Makes optimizer steps from a state to the end of the run. Every method is collective over all ranks."""

    def __init__(
        self,
        cfg: RunConfig,
        schedule: BatchSchedule,
        platform: Platform,
        parts: Parts,
        state: TrainerState,
        checkpoints: Path,
    ) -> None:
        self._cfg, self._schedule, self._platform, self._parts = cfg, schedule, platform, parts
        self._checkpoints = checkpoints
        self.state = state
        self._sampler = PromptSampler(len(parts.rows), cfg.seed, cfg.data.shuffle)
        self._packing = packing_of(cfg)
        self._clock, self._reporter = parts.clock, parts.reporter
        self._rollout_metrics: dict[str, float] = {}  # of a rollout whose first step is not logged yet
        self._clock.step = state.step + 1

    def run(self) -> bool:
        """Train to the last step; True when it got there, False when it was asked to stop."""
        if self.state.step == 0:
            self._evaluate()
        while self.state.step < self._cfg.batch.train_iters:
            started = time.perf_counter()
            made = self._step()
            if made is None:
                return False
            self._log_step(*made, time.perf_counter() - started)
            if _due(self._cfg.evaluation.eval_steps, self.state.step) and not self._finished:
                self._evaluate()
            if _due(self._cfg.checkpoint.save_steps, self.state.step) and not self._finished:
                self.save()
        self._evaluate()
        return True

    @property
    def _finished(self) -> bool:
        return self.state.step >= self._cfg.batch.train_iters

    def _step(self) -> tuple[StepResult, list[list[MicroBatch]]] | None:
        """One optimizer step, with a rollout first when none is left; None when a stop was asked for.

        Returns:
            what the step did, and the micro-batches of every data-parallel rank that it was made from.
        """
        if self._parts.stop.agreed():
            return None
        if not self.state.rollout:
            rollout = self._rollout()
            if self._parts.stop.agreed():
                return None  # the same rollout is sampled again on resume: saving it would only cost time now
            self._accept(rollout)
        with self._clock.phase("train"):
            result = self._parts.policy.update(self._batches(self.state.rollout_used))
        trained = self._dealt(self.state.rollout_used)
        self.state.step += 1
        self.state.rollout_used += 1
        if self.state.rollout_used == self._schedule.steps_per_generation:
            self.state.rollout, self.state.rollout_used = [], 0
        self._clock.step = self.state.step + 1
        return result, trained

    # -- rollout -----------------------------------------------------------------------------------------------------

    def _rollout(self) -> list[Trajectory]:
        self._sync_weights()
        count = self._schedule.prompts_per_rollout
        indices = self._sampler.indices(self.state.position, count)
        rows = {self.state.position + n: self._parts.rows[index] for n, index in enumerate(indices)}
        trajectories = self._sample(rows, self._schedule.num_generations, "rollout", greedy=False)
        rewards = torch.tensor([t.reward for t in trajectories])
        advantages = group_advantages(
            rewards, [t.prompt_id for t in trajectories], self._cfg.algorithm.scale_rewards
        ).tolist()
        for trajectory, advantage in zip(trajectories, advantages, strict=True):
            trajectory.advantage = advantage
        self._reporter.completions(self.state.step + 1, trajectories, rows)
        return trajectories

    def _sample(self, rows: dict[int, Row], samples: int, phase: str, *, greedy: bool) -> list[Trajectory]:
        prompts = [Prompt(position, row, self._parts.tokenizer.encode(row)) for position, row in rows.items()]
        with self._clock.phase(phase):
            mine = self._parts.collector.sample(prompts, samples, greedy=greedy)
            dist.barrier()  # so that waiting for the slowest replica counts as rollout
        with self._clock.phase("reward"):
            self._parts.collector.score(mine, rows)
            return self._parts.collector.gather(mine)

    def _accept(self, rollout: list[Trajectory]) -> None:
        """Make ``rollout`` the current one and complete its log-probabilities before the first update."""
        self.state.rollout, self.state.rollout_used = rollout, 0
        self.state.position += self._schedule.prompts_per_rollout
        self._rollout_metrics = rollout_metrics(rollout, self._schedule.generation_batch_size)
        with self._clock.phase("logprob"):
            if self._schedule.steps_per_generation > 1:
                self._fill_logprobs("old_logprobs", self._parts.policy.logprobs)
            if self._parts.reference is not None:
                reference = self._parts.reference
                self._fill_logprobs("ref_logprobs", lambda b: forward_logprobs(reference, b, self._platform))

    def _fill_logprobs(self, field: str, compute: Callable[[list[PackedBatch]], list[Tensor]]) -> None:
        """Set ``field`` of every trajectory, computed where it will be trained on and in the same packing."""
        found: list[tuple[tuple[int, int], list[float]]] = []
        for used in range(self._schedule.steps_per_generation):
            values = compute(self._batches(used))  # empty but on the last pipeline stage
            if values and mpu.get_tensor_model_parallel_rank() == 0:
                mine = [t for batch in self._my_share(used) for t in batch]
                split = torch.cat(values).split([len(t.response_tokens) for t in mine])
                found += [((t.position, t.sample), part.tolist()) for t, part in zip(mine, split, strict=True)]
        by_key = dict(gather_lists(found))
        for trajectory in self.state.rollout:
            setattr(trajectory, field, by_key.get((trajectory.position, trajectory.sample)))

    # -- training ----------------------------------------------------------------------------------------------------

    def _step_share(self, used: int) -> list[Trajectory]:
        """All completions of the rollout's optimizer step number ``used``."""
        size = self._schedule.global_batch_size
        return self.state.rollout[used * size : (used + 1) * size]

    def _taught(self, used: int) -> list[Trajectory]:
        """Those that go through forward and backward: with a KL term all of them, else those with an advantage."""
        everything = self._step_share(used)
        if self._cfg.algorithm.beta:
            return everything
        return with_gradient(everything, self._schedule.dp * self._packing.multiple)

    def _dealt(self, used: int) -> list[list[MicroBatch]]:
        """The micro-batches of every data-parallel rank."""
        return self._packing.deal(self._taught(used), self._schedule.dp)

    def _my_share(self, used: int) -> list[MicroBatch]:
        return self._dealt(used)[mpu.get_data_parallel_rank()]

    def _batches(self, used: int) -> list[PackedBatch]:
        samples, device = self._schedule.global_batch_size, self._platform.device
        return [pack(batch, samples, device, self._packing.layout) for batch in self._my_share(used)]

    def _sync_weights(self) -> None:
        if self._parts.engine.version != self.state.step:
            with self._clock.phase("sync"):
                self._parts.engine.load_weights(self._parts.policy.exporter.tensors(), self.state.step)

    # -- evaluation, saving, reporting -------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Greedy completions of the held-out rows, scored by the same reward functions."""
        if not self._parts.eval_rows:
            return
        self._sync_weights()
        trajectories = self._sample(dict(enumerate(self._parts.eval_rows)), 1, "eval", greedy=True)
        self._clock.take()
        self._reporter.evaluation(self.state.step, evaluation_metrics(trajectories))

    def save(self) -> Path:
        """Write a checkpoint of the present state and drop those beyond ``save_total_limit``."""
        with self._clock.phase("save"):
            path = checkpoint.save(self._checkpoints, self._parts.policy, self.state, self._platform)
            if dist.get_rank() == 0:
                checkpoint.prune(self._checkpoints, self._cfg.checkpoint.save_total_limit)
        self._clock.take()
        return path

    def export(self, target: Path) -> None:
        """Write the policy as a Hugging Face folder, in the training precision."""
        with self._clock.phase("export"):
            tensors = self._parts.policy.exporter.tensors()
            if dist.get_rank() == 0:
                origin = {"run": self._cfg.name, "step": str(self.state.step), "base_model": self._cfg.model.path}
                write_hf_folder(tensors, target, Path(self._cfg.model.path), origin, DTYPES[self._cfg.model.dtype])
            for _ in tensors:
                pass
            dist.barrier()

    def close(self) -> None:
        """Shut the engine down; nothing may be asked of the trainer afterwards."""
        dist.barrier()
        self._parts.engine.close()

    def _log_step(self, result: StepResult, dealt: list[list[MicroBatch]], seconds: float) -> None:
        trained = [t for mine in dealt for batch in mine for t in batch]
        metrics = step_metrics(result, trained, self._rollout_metrics, self._clock.take(), seconds)
        metrics |= packing_metrics(dealt, self._packing.layout)
        metrics["memory/peak_gib"] = self._platform.peak_memory_gib()
        self._rollout_metrics = {}
        self._reporter.step(self.state.step, metrics)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
