"""What a rollout teaches, optimizer step by optimizer step.

Everything that needs more than one micro-batch is settled here, on every rank alike, before a step is split:
advantages, token weights, old and reference log-probabilities, the entropy threshold, the slopes of group losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from megatron.core import parallel_state as mpu
from torch import Tensor

from grpo_hpc.algo.corrections import entropy_threshold
from grpo_hpc.algo.real import slopes
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.rollout.collect import gather_lists
from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train.credit import set_advantages, set_token_weights
from grpo_hpc.train.megatron.chosen_objective import objective_of
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy
from grpo_hpc.train.micro_batches import PackedBatch, pack
from grpo_hpc.train.packing import MicroBatch, Packing, with_gradient

Scores = Callable[[Sequence[PackedBatch]], list[Tensor]]


@dataclass(frozen=True)
class Lesson:
    """One optimizer step.

    Attributes:
        dealt: the micro-batches of every data-parallel rank.
        threshold: entropy below which a token has no policy loss.
        constant: what the loss has beside the sum over tokens.
    """

    dealt: list[list[MicroBatch]]
    threshold: float = -torch.inf
    constant: float = 0.0

    @property
    def trained(self) -> list[Trajectory]:
        """The completions that go through forward and backward, on all ranks."""
        return [t for mine in self.dealt for batch in mine for t in batch]


class Lessons:
    """Makes lessons. Every method is collective over all ranks and gives every rank the same.

    Args:
        reference: gives the reference model's scores; None without a KL term.
    """

    def __init__(
        self,
        cfg: RunConfig,
        schedule: BatchSchedule,
        platform: Platform,
        policy: TrainedPolicy,
        reference: Scores | None,
        packing: Packing,
    ) -> None:
        self._cfg, self._schedule, self._platform = cfg, schedule, platform
        self._policy, self._reference, self._packing = policy, reference, packing
        self._objective = objective_of(cfg)
        self._replays = cfg.moe.router_replay_mode == "R2"
        self._balances = cfg.moe.balances

    def prepare(self, rollout: Sequence[Trajectory]) -> None:
        """Complete a fresh rollout: token weights, log-probabilities and advantages."""
        set_token_weights(self._cfg, self._schedule, rollout)
        in_reward = self._cfg.algorithm.kl_in_reward
        if not in_reward:
            set_advantages(self._cfg, rollout)
        dropped = self._cfg.tuner.lora_dropout > 0  # the log-probabilities in training are then others
        if in_reward or dropped or self._replays or self._schedule.steps_per_rollout > 1:
            self._fill("old_logprobs", self._policy.scores, rollout)
        if self._reference is not None:
            self._fill("ref_logprobs", self._reference, rollout)
        if in_reward:
            set_advantages(self._cfg, rollout)

    def lesson(self, rollout: Sequence[Trajectory], used: int) -> Lesson:
        """The optimizer step that follows ``used`` steps on ``rollout``."""
        share = self._shares(rollout)[used % self._schedule.steps_per_generation]
        threshold, constant = -torch.inf, 0.0
        top = self._cfg.algorithm.top_entropy_quantile
        if top < 1.0:
            scores = self._scores(self._policy.scores, share)
            counted = [t for t in share if t.token_weight] or share
            threshold = entropy_threshold(torch.cat([scores[t.key][1] for t in counted]), top)
        if self._objective.loss.classifies:
            share, constant = self._classified(share, first=used == 0)
        return Lesson(self._packing.deal(self._taught(share), self._schedule.dp), threshold, constant)

    def _taught(self, share: list[Trajectory]) -> list[Trajectory]:
        """The completions that have a gradient: all of them where experts are balanced by their load."""
        if self._balances:
            return share
        multiple = self._schedule.dp * self._packing.multiple
        return with_gradient(share, multiple, self._objective.teaches_without_advantage)

    def logprobs(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """The policy's log-probabilities of the tokens of any completions, as many as ``dp`` or a multiple of it."""
        scores = self._scores(self._policy.scores, list(trajectories))
        return [scores[t.key][0].tolist() for t in trajectories]

    def batches(self, lesson: Lesson) -> list[PackedBatch]:
        """This rank's micro-batches."""
        return self._packed(lesson.dealt)

    def _packed(self, dealt: list[list[MicroBatch]]) -> list[PackedBatch]:
        mine = dealt[mpu.get_data_parallel_rank()]
        return [pack(batch, self._platform.device, self._packing.layout) for batch in mine]

    def _shares(self, rollout: Sequence[Trajectory]) -> list[list[Trajectory]]:
        """The completions of each optimizer step of a pass over the rollout."""
        size = self._schedule.global_batch_size
        return [list(rollout[at : at + size]) for at in range(0, len(rollout), size)]

    def _fill(self, field: str, compute: Scores, rollout: Sequence[Trajectory]) -> None:
        """Set ``field`` of every completion that will need it, computed in the packing it will be trained in."""
        for share in self._shares(rollout):
            for trajectory, scores in self._score_taught(compute, share):
                setattr(trajectory, field, scores[0].tolist())

    def _score_taught(self, compute: Scores, share: list[Trajectory]) -> list[tuple[Trajectory, Tensor]]:
        # before advantages are known, and where a group's loss needs all of its completions, none can be left out
        everything = self._cfg.algorithm.kl_in_reward or self._objective.loss.classifies
        if not everything:
            share = self._taught(share)
        records = self._replays and compute == self._policy.scores
        scores = self._scores_and_routing(share) if records else self._scores(compute, share)
        return [(t, scores[t.key]) for t in share]

    def _scores(self, compute: Scores, trajectories: list[Trajectory]) -> dict[tuple[int, int], Tensor]:
        """Log-probabilities and entropies [2, tokens] of each completion, on every rank."""
        dealt = self._packing.deal(trajectories, self._schedule.dp)
        return self._gathered(dealt, compute(self._packed(dealt)))

    def _gathered(self, dealt: list[list[MicroBatch]], values: list[Tensor]) -> dict[tuple[int, int], Tensor]:
        """``values`` [C, scored tokens] of this rank's micro-batches by completion, from all ranks.

        They are there on the last pipeline stage only.
        """
        found: list[tuple[tuple[int, int], Tensor]] = []
        if values and mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_context_parallel_rank() == 0:
            mine = [t for batch in dealt[mpu.get_data_parallel_rank()] for t in batch]
            parts = torch.cat(values, dim=1).split([len(t.response_tokens) for t in mine], dim=1)
            found = [(t.key, part.clone()) for t, part in zip(mine, parts, strict=True)]
        return dict(gather_lists(found))

    def _scores_and_routing(self, trajectories: list[Trajectory]) -> dict[tuple[int, int], Tensor]:
        """The policy's scores; sets ``routing`` of each completion to where its tokens went meanwhile."""
        dealt = self._packing.deal(trajectories, self._schedule.dp)
        batches = self._packed(dealt)
        recorder = self._policy.recorder(batches)
        scores = self._gathered(dealt, self._policy.scores(batches, recorder))
        mine = dealt[mpu.get_data_parallel_rank()]
        texts = recorder.texts(mine)
        first = mpu.get_pipeline_model_parallel_rank() + mpu.get_tensor_model_parallel_rank() == 0
        found = [(t.key, text) for t, text in zip((t for batch in mine for t in batch), texts, strict=True)]
        routing = dict(gather_lists(found if first and mpu.get_context_parallel_rank() == 0 else []))
        for t in trajectories:
            t.routing = routing[t.key]
        return scores

    def _classified(self, share: list[Trajectory], *, first: bool) -> tuple[list[Trajectory], float]:
        """``share`` with the slopes of its groups' losses in place of advantages, and the constant of its loss."""
        counted = [t for t in share if t.token_weight]
        if not counted:
            return share, 0.0
        summed = [0.0] * len(counted)  # of log pi - log pi_old: 0 before the first update
        if not first:
            scores = self._scores(self._policy.scores, share)
            summed = [float((scores[t.key][0] - torch.tensor(t.old_logprobs)).double().sum()) for t in counted]
        lengths = [len(t.response_tokens) for t in counted]
        means = torch.tensor([s / n for s, n in zip(summed, lengths, strict=True)])
        advantages = torch.tensor([t.advantage for t in counted])
        prompt_ids = [t.prompt_id for t in counted]
        values, loss = slopes(means, advantages, lengths, prompt_ids, self._cfg.algorithm.real_tau)
        slope_of = {t.key: value for t, value in zip(counted, values.tolist(), strict=True)}
        linear = sum(-slope_of[t.key] * t.token_weight * s for t, s in zip(counted, summed, strict=True))
        return [replace(t, advantage=slope_of.get(t.key, 0.0)) for t in share], loss - linear
