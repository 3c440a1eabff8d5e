"""The GRPO loop: sample, score, advantages, old and reference log-probabilities, optimizer steps, weight sync."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import lcm
from pathlib import Path

import numpy as np

from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.control import Control
from grpo_hpc.data.prompts import PromptSet
from grpo_hpc.data.tokenizer import Tokenizer
from grpo_hpc.models.families import family
from grpo_hpc.models.hf_folder import write_hf_folder
from grpo_hpc.models.lora import Adapters
from grpo_hpc.models.movers import TO_EVERY_RANK
from grpo_hpc.models.peft_folder import gather_adapters, write_adapter
from grpo_hpc.models.policy_model import PolicyModel
from grpo_hpc.models.transport import ToFirstRank
from grpo_hpc.observe.completions import member
from grpo_hpc.rollout.collect import Asked, Collected, Collector
from grpo_hpc.rollout.engine import Engine
from grpo_hpc.rollout.residency import Use
from grpo_hpc.rollout.sample import Key, keys_of
from grpo_hpc.rollout.scoring import Scored
from grpo_hpc.rollout.token_values import token_values
from grpo_hpc.train import checkpoints, engine_check
from grpo_hpc.train.checkpoints import TrainerState
from grpo_hpc.train.colocation import Colocation
from grpo_hpc.train.experience import Experience
from grpo_hpc.train.garbage import GarbageControl
from grpo_hpc.train.megatron.distributed_checkpoint import DistributedCheckpoint
from grpo_hpc.train.megatron.optimizer import DTYPES
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy
from grpo_hpc.train.reference import mix_into
from grpo_hpc.train.rollout_files import Place
from grpo_hpc.train.rollout_source import Rollout, RolloutSource
from grpo_hpc.train.step import Made, Step
from grpo_hpc.train.step_metrics import (
    Reporter,
    completion_rows,
    evaluation_metrics,
    rollout_metrics,
    step_metrics,
    sync_metrics,
)
from grpo_hpc.train.telemetry.step_profile import StepProfile
from grpo_hpc.train.watch import PhaseClock, StopRequest


@dataclass
class Parts:
    """What a trainer is put together from (see :mod:`grpo_hpc.train.entry`)."""

    policy: TrainedPolicy
    reference: list[PolicyModel] | None  # None without a KL term, and where it is the policy without its adapters
    contents: DistributedCheckpoint
    engine: Engine
    colocation: Colocation
    collector: Collector
    tokenizer: Tokenizer
    source: RolloutSource
    step: Step
    eval_prompts: PromptSet | None
    control: Control
    place: Place
    clock: PhaseClock
    stop: StopRequest
    reporter: Reporter
    profile: StepProfile


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
        self._clock, self._reporter = parts.clock, parts.reporter
        self._rollout_metrics: dict[str, float] = {}  # of a rollout whose first step is not logged yet
        self._sync_metrics: dict[str, float] = {}
        self._clock.step = state.step + 1
        self._garbage = GarbageControl()

    def run(self) -> bool:
        """Train to the last step; True when it got there, False when it was asked to stop."""
        if not self._finished:
            self._check_engine()
        if self.state.step == 0 or self.state.evaluates:
            self._evaluate()
        unsaved = False  # a checkpoint is due: it waits for an update that was not skipped
        while not self._finished:
            self._garbage.between_steps()
            started = time.perf_counter()
            made = self._step()
            if made is None:
                return False
            self._log_step(made, time.perf_counter() - started)
            if _due(self._cfg.evaluation.eval_steps, self.state.step) and not self._finished:
                self._evaluate()
            unsaved = unsaved or _due(self._cfg.checkpoint.save_steps, self.state.step)
            if unsaved and not self._parts.policy.skipped and not self._finished:
                self.save()
                unsaved = False
        self._evaluate()
        return not self.state.evaluates

    @property
    def _finished(self) -> bool:
        return self.state.step >= self._cfg.batch.steps

    def _step(self) -> Made | None:
        """One optimizer step, with a rollout first when none is left; None when a stop was asked for."""
        if self._parts.stop.agreed():
            return None
        if self.state.experience is None:
            self._prepare_engine()
            rollout = self._parts.source.next(self.state.position, self.state.carried)
            if isinstance(rollout, Collected):
                self._cut_short(rollout)
                return None
            self.state.experience = self._accept(rollout)
            if self._parts.stop.agreed():
                return None
        self._parts.colocation.enter(Use.TRAIN)
        profile = self._parts.profile
        with profile.around(self.state.step + 1):
            made = self._parts.step(self.state.experience, self.state.step)
        if told := profile.said(self.state.step + 1):
            self._reporter.message(told)
        if made.metrics["skipped_updates"]:
            keys = ", ".join(f"{key.position}/{key.sample}" for key in keys_of(made.trained))
            self._reporter.message(f"loss or gradient are not finite, no update is made; completions: {keys}")
        self.state.step += 1
        if self.state.experience.used == self._schedule.steps_per_rollout:
            self.state.experience = None
        self._sync_reference()
        self._clock.step = self.state.step + 1
        return made

    def _cut_short(self, found: Collected) -> None:
        """Keep what a rollout has sampled so far: the run goes on with it.

        Raises:
            ServersLost: it was not cut short on request.
        """
        self.state.carried = found
        if found.lost:
            raise found.lost
        self._parts.stop.require_hold()

    def _sync_reference(self) -> None:
        """Every so many steps the reference takes a part of the policy; it acts from the next rollout on."""
        a, reference = self._cfg.algorithm, self._parts.reference
        if a.sync_ref_model and reference is not None and self.state.step % a.ref_model_sync_steps == 0:
            self._parts.policy.settle()
            mix_into(reference, self._parts.policy.chunks, a.ref_model_mixup_alpha)

    def _accept(self, rollout: Rollout) -> Experience:
        """Make ``rollout`` the current one, complete for its first update."""
        self._parts.colocation.enter(Use.TRAIN)
        experience = self._parts.step.begin(rollout.used, {k: s.sample for k, s in rollout.scored.items()})
        self.state.position, self.state.carried = rollout.position, rollout.carried
        names, dynamic = self._cfg.rewards.columns, self._cfg.algorithm.dynamic_sample
        self._rollout_metrics = rollout_metrics(rollout, names, dynamic=dynamic)
        if self._cfg.logging.log_completions:
            rows = completion_rows(rollout, experience, names, self._parts.source.row, self._by_token(experience))
            everybodys = self._parts.control.gather_at_first(member(rows), "completions to be written down")
            self._reporter.completions(self.state.step + 1, everybodys)
        if not experience.table["token_weight"].any():
            self._reporter.message("overlong_filter: every completion was cut off, so this rollout teaches nothing")
        if rollout.filled:
            self._reporter.message(
                f"dynamic sampling: after {rollout.rounds} rounds {rollout.filled} of "
                f"{self._schedule.prompts_per_rollout} groups still have equal rewards; they fill the batch and teach "
                f"nothing"
            )
        return experience

    def _by_token(self, experience: Experience) -> Callable[[Key, Scored], dict[str, str] | None]:
        """What is recorded of the tokens of the rollout's first completions; collective where the trainer knows it."""
        keys = keys_of(experience.table)[: self._cfg.logging.log_token_values]
        known, chosen = self._parts.step.known(experience, keys), frozenset(keys)
        lengths = self._parts.tokenizer.byte_lengths if keys else np.zeros(0, np.uint16)

        def values(key: Key, scored: Scored) -> dict[str, str] | None:
            if key not in chosen:
                return None
            told = self._parts.tokenizer.decode(scored.sample.response.tolist()) if scored.turns else scored.text
            found = token_values(scored.sample, told, lengths, known.get(key, {}))
            return {**found, "text": told} if found and scored.turns else found  # of all turns, not of the last

        return values

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
            replicas, step = self._parts.collector.replicas, self._parts.step
            tokens = min(engine_check.TOKENS, self._cfg.rollout.max_completion_length)
            asked = self._parts.source.first_rows(
                lcm(replicas, step.dealing.least) // replicas
            )  # every rank scores some
            sampled = self._parts.collector.probe(asked, tokens)
        self._parts.colocation.enter(Use.TRAIN)
        with self._clock.phase("canary"):
            engine, trainer = step.logprobs(sampled.table, sampled.samples)
            distance = engine_check.check(self._cfg, engine, trainer)
        self._clock.take()
        self._reporter.message(
            f"engine and trainer agree about the weights: {distance:.2g} nat apart on average over {len(engine)} tokens"
        )

    # -- evaluation, saving, reporting -------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Greedy completions of the held-out rows, scored by the same reward functions.

        Where somebody asks to stop meanwhile it is made when the run goes on.
        """
        prompts = self._parts.eval_prompts
        if prompts is None:
            return
        self._prepare_engine()
        asked = Asked(prompts, {place: place for place in range(len(prompts))})
        found = self._parts.source.sample(asked, 1, "eval", greedy=True)
        self._clock.take()
        self.state.evaluates = found.cut
        if found.lost:
            raise found.lost
        if found.cut:
            return
        self._reporter.evaluation(self.state.step, evaluation_metrics(found.table, self._cfg.rewards.columns))

    def save(self) -> Path:
        """Write a checkpoint of the present state and drop those beyond ``save_total_limit``."""
        self._parts.stop.require_hold()
        self._parts.colocation.enter(Use.TRAIN)
        with self._clock.phase("save"):
            parts = self._parts
            path = checkpoints.save(self._checkpoints, parts.contents, self.state, parts.control, parts.place)
            if parts.control.first:
                checkpoints.prune(self._checkpoints, self._cfg.checkpoint.save_total_limit)
        self._clock.take()
        return path

    def export(self, target: Path) -> None:
        """Write the policy as a Hugging Face folder, or its adapters as a peft folder, in the training precision."""
        self._parts.colocation.enter(Use.TRAIN)
        with self._clock.phase("export"):
            if self._parts.policy.adapters is None:
                self._export_model(target)
            else:
                self._export_adapters(target, self._parts.policy.adapters)
            self._parts.control.wait("the first rank, which writes the export")

    def _export_model(self, target: Path) -> None:
        tensors = self._parts.policy.exporter.tensors(ToFirstRank())
        if self._parts.control.first:
            origin = {"run": self._cfg.name, "step": str(self.state.step), "base_model": self._cfg.model.path}
            source, dtype = Path(self._cfg.model.path), DTYPES[self._cfg.model.dtype]
            precise = family(self._parts.policy.chunks[0].shape.family).float32
            told = self._cfg.data.chat_template_kwargs
            write_hf_folder(tensors, target, source, origin, dtype, float32=precise, template_kwargs=told)
        for _ in tensors:
            pass

    def _export_adapters(self, target: Path, adapters: Adapters) -> None:
        self._parts.policy.settle()
        tensors = gather_adapters(self._parts.policy.chunks, self._platform.layer_spec, self._parts.control)
        if self._parts.control.first:
            write_adapter(target, tensors, adapters, self._cfg.model.path, self._cfg.data.chat_template_kwargs)

    def close(self) -> None:
        """Shut the engine down; nothing may be asked of the trainer afterwards."""
        self._parts.control.wait("the end of the run on every rank")
        self._parts.collector.close()
        self._parts.engine.close()
        self._parts.reporter.close()
        self._garbage.close()

    def _log_step(self, made: Made, seconds: float) -> None:
        metrics = step_metrics(made.metrics, made.trained, self._rollout_metrics, self._clock.take(), seconds)
        if self._rollout_metrics:  # else it was done for the rows that are held out, or to go on in a rollout
            metrics |= self._sync_metrics
        metrics |= self._clock.memory.metrics()
        self._rollout_metrics = {}
        self._reporter.step(self.state.step, metrics)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
