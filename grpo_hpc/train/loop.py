"""The GRPO loop: sample, score, advantages, old and reference log-probabilities, optimizer steps, weight sync."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import lcm
from pathlib import Path

import torch.distributed as dist

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.data.prompts import PromptSet
from grpo_hpc.models.families import family
from grpo_hpc.models.hf_folder import write_hf_folder
from grpo_hpc.models.lora import Adapters
from grpo_hpc.models.movers import TO_EVERY_RANK
from grpo_hpc.models.peft_folder import gather_adapters, write_adapter
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.models.transport import ToFirstRank
from grpo_hpc.rollout.collect import Collector, Prompt
from grpo_hpc.rollout.engine import Engine
from grpo_hpc.rollout.residency import Use
from grpo_hpc.train import checkpoints, engine_check
from grpo_hpc.train.checkpoints import TrainerState
from grpo_hpc.train.colocation import Colocation
from grpo_hpc.train.lessons import Lesson, Lessons, Scores
from grpo_hpc.train.megatron.optimizer import DTYPES
from grpo_hpc.train.megatron.parallel import packing_of
from grpo_hpc.train.megatron.pipeline import forward_scores
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy
from grpo_hpc.train.packing import packing_metrics
from grpo_hpc.train.reference import mix_into
from grpo_hpc.train.replay import freely_routed
from grpo_hpc.train.rollout_source import Rollout, RolloutSource
from grpo_hpc.train.step_metrics import (
    Reporter,
    evaluation_metrics,
    rollout_metrics,
    staleness,
    step_metrics,
    sync_metrics,
)
from grpo_hpc.train.watch import PhaseClock, StopRequest


@dataclass
class Parts:
    """What a trainer is put together from (see :mod:`grpo_hpc.train.entry`)."""

    policy: TrainedPolicy
    reference: list[PolicyModel] | None  # None without a KL term, and where it is the policy without its adapters
    engine: Engine
    colocation: Colocation
    collector: Collector
    prompts: PromptSet
    eval_prompts: PromptSet | None
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
        self._packing = packing_of(cfg)
        self._source = RolloutSource(cfg, schedule, parts.collector, parts.prompts, parts.clock)
        self._lessons = Lessons(cfg, schedule, platform, parts.policy, self._reference_scores(), self._packing)
        self._clock, self._reporter = parts.clock, parts.reporter
        self._rollout_metrics: dict[str, float] = {}  # of a rollout whose first step is not logged yet
        self._clock.step = state.step + 1

    def _reference_scores(self) -> Scores | None:
        policy, reference = self._parts.policy, self._parts.reference
        if not self._cfg.algorithm.beta:
            return None
        if reference is None:
            return policy.base_scores
        return lambda batches: forward_scores(reference, freely_routed(batches), self._platform)

    def run(self) -> bool:
        """Train to the last step; True when it got there, False when it was asked to stop."""
        if not self._finished:
            self._check_engine()
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

    def _step(self) -> tuple[dict[str, float], Lesson] | None:
        """One optimizer step, with a rollout first when none is left; None when a stop was asked for.

        Returns:
            the metrics of the step, and what it was made from.
        """
        if self._parts.stop.agreed():
            return None
        if not self.state.rollout:
            self._prepare_engine()
            rollout = self._source.next(self.state)
            if self._parts.stop.agreed():
                return None  # the same rollout is sampled again on resume: saving it would only cost time now
            self._accept(rollout)
        self._parts.colocation.enter(Use.TRAIN)
        with self._clock.phase("logprob"):
            lesson = self._lessons.lesson(self.state.rollout, self.state.rollout_used)
        with self._clock.phase("train"):
            values = self._parts.policy.update(self._lessons.batches(lesson), lesson.threshold)
        values["loss"] += lesson.constant
        values |= staleness(lesson.trained, self.state.step)
        self.state.step += 1
        self.state.rollout_used += 1
        if self.state.rollout_used == self._schedule.steps_per_rollout:
            self.state.rollout, self.state.rollout_used = [], 0
        self._sync_reference()
        self._clock.step = self.state.step + 1
        return values, lesson

    def _sync_reference(self) -> None:
        """Every so many steps the reference takes a part of the policy; it acts from the next rollout on."""
        a, reference = self._cfg.algorithm, self._parts.reference
        if a.sync_ref_model and reference is not None and self.state.step % a.ref_model_sync_steps == 0:
            self._parts.policy.settle()
            mix_into(reference, self._parts.policy.chunks, a.ref_model_mixup_alpha)

    def _accept(self, rollout: Rollout) -> None:
        """Make ``rollout`` the current one and complete it before the first update."""
        self.state.rollout, self.state.rollout_used = rollout.used, 0
        self.state.surplus, self.state.position = rollout.surplus, rollout.position
        self._parts.colocation.enter(Use.TRAIN)
        with self._clock.phase("logprob"):
            self._lessons.prepare(rollout.used)
        self._rollout_metrics = rollout_metrics(rollout, dynamic=self._cfg.algorithm.dynamic_sample)
        self._reporter.completions(self.state.step + 1, rollout, self._source.rows_of(rollout.sampled + rollout.used))
        if not any(t.token_weight for t in rollout.used):
            self._reporter.message("overlong_filter: every completion was cut off, so this rollout teaches nothing")
        if rollout.filled:
            self._reporter.message(
                f"dynamic sampling: after {rollout.rounds} rounds {rollout.filled} of "
                f"{self._schedule.prompts_per_rollout} groups still have equal rewards; they fill the batch and teach "
                f"nothing"
            )

    def _prepare_engine(self) -> None:
        """Afterwards the engine is awake and holds the weights of now."""
        if self._parts.engine.version != self.state.step:
            self._parts.colocation.enter(Use.SYNC)
            started = time.perf_counter()
            with self._clock.phase("sync"):
                to = TO_EVERY_RANK if self._parts.engine.fed_by_every_rank else ToFirstRank()
                tensors = self._parts.policy.exporter.tensors(to)
                synced = self._parts.engine.load_weights(tensors, self.state.step)
            self._sync_metrics = sync_metrics(synced, time.perf_counter() - started)
        self._parts.colocation.enter(Use.ROLLOUT)

    def _check_engine(self) -> None:
        """The engine's log-probabilities of a few tokens must be the trainer's."""
        self._prepare_engine()
        with self._clock.phase("canary"):
            replicas = dist.get_world_size() // self._cfg.rollout.ranks_of_engine
            count = (
                lcm(replicas, self._schedule.dp * self._packing.multiple) // replicas
            )  # so that every rank scores some
            known = self._parts.prompts
            prompts = [Prompt.of(n, known, n % len(known)) for n in range(count)]
            sampled = self._parts.collector.probe(
                prompts, min(engine_check.TOKENS, self._cfg.rollout.max_completion_length)
            )
        self._parts.colocation.enter(Use.TRAIN)
        with self._clock.phase("canary"):
            distance = engine_check.check(self._cfg, sampled, self._lessons.logprobs(sampled))
        self._clock.take()
        self._reporter.message(
            f"engine and trainer agree about the weights: {distance:.2g} nat apart on average over "
            f"{sum(len(t.response_tokens) for t in sampled)} tokens"
        )

    # -- evaluation, saving, reporting -------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Greedy completions of the held-out rows, scored by the same reward functions."""
        held_out = self._parts.eval_prompts
        if held_out is None:
            return
        self._prepare_engine()
        prompts = [Prompt.of(n, held_out, n) for n in range(len(held_out))]
        trajectories = self._source.sample(prompts, 1, "eval", greedy=True)
        self._clock.take()
        self._reporter.evaluation(self.state.step, evaluation_metrics(trajectories))

    def save(self) -> Path:
        """Write a checkpoint of the present state and drop those beyond ``save_total_limit``."""
        self._parts.colocation.enter(Use.TRAIN)
        with self._clock.phase("save"):
            path = checkpoints.save(
                self._checkpoints,
                self._parts.policy,
                self.state,
                self._platform,
                self._moving_reference(),
                self._cfg.checkpoint.reshardable,
            )
            if dist.get_rank() == 0:
                checkpoints.prune(self._checkpoints, self._cfg.checkpoint.save_total_limit)
        self._clock.take()
        return path

    def _moving_reference(self) -> list[PolicyModel] | None:
        """The reference model when it is not what the run started from."""
        return self._parts.reference if self._cfg.algorithm.sync_ref_model else None

    def export(self, target: Path) -> None:
        """Write the policy as a Hugging Face folder, or its adapters as a peft folder, in the training precision."""
        self._parts.colocation.enter(Use.TRAIN)
        with self._clock.phase("export"):
            if self._parts.policy.adapters is None:
                self._export_model(target)
            else:
                self._export_adapters(target, self._parts.policy.adapters)
            dist.barrier()

    def _export_model(self, target: Path) -> None:
        tensors = self._parts.policy.exporter.tensors(ToFirstRank())
        if dist.get_rank() == 0:
            origin = {"run": self._cfg.name, "step": str(self.state.step), "base_model": self._cfg.model.path}
            source, dtype = Path(self._cfg.model.path), DTYPES[self._cfg.model.dtype]
            precise = family(self._parts.policy.chunks[0].shape.family).float32
            write_hf_folder(tensors, target, source, origin, dtype, float32=precise)
        for _ in tensors:
            pass

    def _export_adapters(self, target: Path, adapters: Adapters) -> None:
        self._parts.policy.settle()
        tensors = gather_adapters(self._parts.policy.chunks, self._platform.layer_spec)
        if dist.get_rank() == 0:
            write_adapter(target, tensors, adapters, self._cfg.model.path)

    def close(self) -> None:
        """Shut the engine down; nothing may be asked of the trainer afterwards."""
        dist.barrier()
        self._parts.collector.close()
        self._parts.engine.close()
        self._parts.reporter.close()

    def _log_step(self, values: dict[str, float], lesson: Lesson, seconds: float) -> None:
        metrics = step_metrics(values, lesson.trained, self._rollout_metrics, self._clock.take(), seconds)
        metrics |= packing_metrics(lesson.dealt, self._packing.layout)
        if self._rollout_metrics:  # else it was done for the rows that are held out, or to go on in a rollout
            metrics |= self._sync_metrics
        metrics |= self._clock.memory.metrics()
        self._rollout_metrics = {}
        self._reporter.step(self.state.step, metrics)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
