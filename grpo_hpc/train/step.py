"""One optimizer step from top to bottom.

    summaries -> advantages, token weights -> deal -> payloads -> micro-batches -> old and reference log-probabilities
              -> forward and backward -> update -> metrics

:meth:`Step.begin` does once for a rollout what comes before its first update, :meth:`Step.__call__` makes one update.
Everything that needs more than one micro-batch is settled from the summaries, on every rank alike, before a step is
split; what is computed of tokens stays on the rank that trains them. Shapes: B completions of the rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grpo_hpc.algo.corrections import entropy_threshold
from grpo_hpc.algo.real import slopes
from grpo_hpc.config import RunConfig
from grpo_hpc.config.batch import BatchSchedule
from grpo_hpc.control import Control
from grpo_hpc.rollout.exchange import Exchange
from grpo_hpc.rollout.sample import Key, Sample, episode_of, episodes, keys_of, turn_rows
from grpo_hpc.train.credit import set_advantages, set_token_weights, set_turn_advantages
from grpo_hpc.train.experience import Experience, trained_rows, turns_by_key
from grpo_hpc.train.megatron.chosen_objective import objective_of
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy
from grpo_hpc.train.micro_batches import PackedBatch
from grpo_hpc.train.packing import Dealing, Packing, packing_metrics
from grpo_hpc.train.rollout_files import Place
from grpo_hpc.train.scorer import ENTROPIES, WAITED_FOR, Scorer, Scores
from grpo_hpc.train.watch import PhaseClock


@dataclass(frozen=True)
class Made:
    """One optimizer step that was made.

    Attributes:
        metrics: over all tokens of all ranks.
        trained: summaries of the completions that went through forward and backward, on all ranks.
    """

    metrics: dict[str, float]
    trained: np.ndarray


class Step:
    """Makes optimizer steps. Every method is collective over all ranks.

    Args:
        reference: gives the reference model's scores; None without a KL term.

    Attributes:
        dealing: who trains what.
    """

    def __init__(
        self,
        cfg: RunConfig,
        schedule: BatchSchedule,
        platform: Platform,
        policy: TrainedPolicy,
        reference: Scores | None,
        packing: Packing,
        exchange: Exchange,
        control: Control,
        place: Place,
        clock: PhaseClock,
    ) -> None:
        self._cfg, self._schedule = cfg, schedule
        self._policy, self._reference = policy, reference
        self._exchange, self._control, self._clock = exchange, control, clock
        self._scorer = Scorer(platform, packing.layout, exchange, control, place)
        self._records = cfg.moe.router_replay_mode == "R2"
        self._objective = objective_of(cfg)
        self._top_entropy = cfg.algorithm.top_entropy_quantile
        self.dealing = Dealing(
            packing,
            schedule.global_batch_size,
            schedule.dp,
            everything=cfg.moe.balances or cfg.algorithm.kl_in_reward,
            contrasts=self._objective.loss.classifies,
            without_advantage=self._objective.teaches_without_advantage or self._top_entropy < 1.0,
        )

    def begin(self, table: np.ndarray, held: Mapping[Key, Sample]) -> Experience:
        """A fresh rollout, complete for its first update.

        Args:
            table: its summaries, scored, in sampling order.
            held: payloads of this rank.
        """
        table, whole, episode = table.copy(), episodes(table), episode_of(table)
        in_reward, scorer, of_turns = self._cfg.algorithm.kl_in_reward, self._scorer, None
        set_token_weights(self._cfg, self._schedule, whole)
        table["token_weight"] = whole["token_weight"][episode]
        if not in_reward:
            set_advantages(self._cfg, whole)
            table["advantage"] = whole["advantage"][episode]
        if self._cfg.algorithm.turn_advantage_coef and table["turn_rewards"].any():
            mine = turn_rows(table[table["owner"] == self._control.rank], held)
            turns = self._control.gather_rows(mine, "rewards of turns")
            set_turn_advantages(self._cfg, turns)
            of_turns = turns_by_key(table, turns)
        steps = self.dealing.deal(table)
        experience = Experience(table, steps, self._exchange.deliver(held, table, steps))
        if of_turns is not None:
            experience.turns = {key: of_turns[key] for key in experience.samples}
        with self._clock.phase("logprob"):
            if self._records:
                experience.old, experience.routing = scorer.record(experience, self._policy)
            elif self._needs_old:
                found = scorer.logprobs_and_entropies(experience, self._policy.scores)
                experience.old, experience.entropies = found or (None, None)
            if self._reference is not None:
                experience.ref = scorer.logprobs(experience, self._reference)
        if in_reward:
            moved = scorer.summed_difference(experience, experience.old, experience.ref)
            set_advantages(self._cfg, whole, np.bincount(episode, moved))
            table["advantage"] = whole["advantage"][episode]
        return experience

    def __call__(self, experience: Experience, step: int) -> Made:
        """Optimizer step number ``step`` + 1."""
        with self._clock.phase("logprob"):
            advantages, threshold, constant = self.settled(experience)
        with self._clock.phase("train"):
            metrics = self._policy.update(self.batches(experience, advantages), threshold)
        dealt = experience.steps[experience.number]
        trained = experience.table[trained_rows(dealt)]
        ages = step - trained["oldest"]
        metrics |= {"staleness/mean": float(ages.mean()), "staleness/max": float(ages.max())}
        metrics |= packing_metrics(dealt, experience.table, self.dealing.packing)
        metrics["loss"] += constant
        experience.used += 1
        return Made(metrics, trained)

    def settled(self, experience: Experience) -> tuple[np.ndarray, float, float]:
        """What the coming step needs to know of all its completions before it is split.

        Returns:
            advantages [B], the entropy below which a token has no policy loss, and what the loss has beside the sum
            over tokens.
        """
        advantages, threshold, constant = experience.table["advantage"], -torch.inf, 0.0
        if self._top_entropy < 1.0:
            threshold = self._threshold(experience)
        if self._objective.loss.classifies:
            advantages, constant = self._slopes(experience)
        return advantages, threshold, constant

    def batches(self, experience: Experience, advantages: np.ndarray) -> list[PackedBatch]:
        """This rank's micro-batches of the coming step."""
        return self._scorer.packed(experience, experience.steps[experience.number], advantages)

    def known(self, experience: Experience, keys: Sequence[Key]) -> dict[Key, dict[str, np.ndarray]]:
        """What the policy said of these completions before the first update, where it was asked, on every rank.

        Returns:
            ``trainer``, log-probabilities, and ``entropy``, float32 [n] each; without those that nobody trains.
        """
        if not (keys and self._needs_old):
            return {}
        sides = {"trainer": experience.old, "entropy": experience.entropies}
        said = {name: self._scorer.said(values) for name, values in sides.items()}
        mine = {key: {name: v[key] for name, v in said.items() if key in v} for key in keys if key in said["trainer"]}
        return {key: values for part in self._control.gather(mine, WAITED_FOR) for key, values in part.items()}

    def logprobs(self, table: np.ndarray, held: Mapping[Key, Sample]) -> tuple[np.ndarray, np.ndarray]:
        """The engine's log-probabilities and the trainer's of the same tokens, from all ranks: [N], [N]."""
        steps = [self.dealing.packing.deal(table, self.dealing.ranks)]
        experience = Experience(table, steps, self._exchange.deliver(held, table, steps))
        now = self._scorer.said(self._scorer.logprobs(experience, self._policy.scores))
        mine = [(experience.samples[key].logprobs, value) for key, value in now.items()]
        pairs = [pair for part in self._control.gather(mine, WAITED_FOR) for pair in part]
        return np.concatenate([engine for engine, _ in pairs]), np.concatenate([trainer for _, trainer in pairs])

    @property
    def _needs_old(self) -> bool:
        """Whether the ratio of a step may differ from 1, or a pass before it is wanted for something else."""
        dropped = self._cfg.tuner.lora_dropout > 0  # the log-probabilities in training are then others
        asked = self._cfg.algorithm.kl_in_reward or self._records
        return asked or dropped or self._schedule.steps_per_rollout > 1

    # -- what some objectives must know of the whole step -----------------------------------------------------------

    def _threshold(self, experience: Experience) -> float:
        """The entropy that the wanted share of the step's tokens lies above."""
        dealt = experience.steps[experience.number]
        entropies = self._scorer.said(self._scorer.values(experience, dealt, self._policy.scores, ENTROPIES))
        table = experience.table[trained_rows(dealt)]
        counted = set(keys_of(table[table["token_weight"] != 0] if table["token_weight"].any() else table))
        values = [torch.from_numpy(value) for key, value in entropies.items() if key in counted]
        flat = torch.cat(values) if values else torch.empty(0)
        return entropy_threshold(flat, self._top_entropy, self._total)

    def _total(self, counts: Tensor) -> Tensor:
        return torch.from_numpy(self._control.sum(counts.numpy(), WAITED_FOR))

    def _slopes(self, experience: Experience) -> tuple[np.ndarray, float]:
        """What takes the place of the advantages in a loss of whole groups [B], and the constant of its loss."""
        table, size = experience.table, self._schedule.global_batch_size
        episode, whole = episode_of(table), episodes(table)
        values = np.zeros(len(whole))
        share = np.arange(size) + experience.number * size
        counted = share[whole["token_weight"][share] != 0]
        if not len(counted):
            return values[episode], 0.0
        summed = np.zeros(len(table))  # of log pi - log pi_old: 0 before the first update
        if experience.used:
            dealt = experience.steps[experience.number]
            now = self._scorer.values(experience, dealt, self._policy.scores)
            summed = self._scorer.summed_difference(experience, now, experience.old)
        chosen, sums = whole[counted], np.bincount(episode, summed)[counted]
        means = torch.from_numpy((sums / chosen["sampled"]).astype(np.float32))
        advantages = torch.from_numpy(chosen["advantage"].astype(np.float32))
        groups, tau = chosen["position"].tolist(), self._cfg.algorithm.real_tau
        found, loss = slopes(means, advantages, chosen["sampled"].tolist(), groups, tau)
        values[counted] = found.numpy()
        return values[episode], loss - float((-values[counted] * chosen["token_weight"] * sums).sum())
