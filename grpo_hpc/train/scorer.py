"""Passes without gradient over what ranks train: log-probabilities, entropies and routing by completion.

They are known where they will be used, on the last pipeline stage of the replica that trains the completion, and stay
there; what other ranks must know of them is a sum for each completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from grpo_hpc.control import Control
from grpo_hpc.rollout.exchange import Exchange
from grpo_hpc.rollout.sample import Key, keys_of
from grpo_hpc.train.experience import Dealt, Experience, by_key
from grpo_hpc.train.megatron.platform import Platform
from grpo_hpc.train.megatron.trained_policy import TrainedPolicy
from grpo_hpc.train.micro_batches import PackedBatch
from grpo_hpc.train.packing import RowLayout
from grpo_hpc.train.rollout_files import Place

Scores = Callable[[Sequence[PackedBatch]], list[Tensor]]
"""Log-probabilities and entropies [2, N] of each micro-batch; nothing but on the last stage."""

Values = dict[Key, np.ndarray]
LOGPROBS, ENTROPIES = 0, 1
WAITED_FOR = "what the other ranks computed of their completions"


class Scorer:
    """Makes the passes, in the packing in which completions are trained. Every method is collective."""

    def __init__(
        self, platform: Platform, layout: RowLayout, exchange: Exchange, control: Control, place: Place
    ) -> None:
        self._device, self._layout = platform.device, layout
        self._replica, self._control, self._place = exchange.data_rank, control, place

    def packed(self, experience: Experience, dealt: Dealt, advantages: np.ndarray | None = None) -> list[PackedBatch]:
        """This rank's micro-batches; ``advantages`` [B] stand in for those of the table."""
        mine = dealt[self._replica]
        return [experience.pack(rows, self._device, self._layout, advantages) for rows in mine]

    def values(self, experience: Experience, dealt: Dealt, compute: Scores, which: int = LOGPROBS) -> Values:
        """Of each completion that this rank trains in one step, float32 [n]; empty but on the last stage."""
        return self._of(experience, dealt, compute(self.packed(experience, dealt)), which)

    def logprobs(self, experience: Experience, compute: Scores) -> Values | None:
        """Of everything that this rank trains of a rollout; None but on the last stage."""
        found = self.logprobs_and_entropies(experience, compute)
        return None if found is None else found[LOGPROBS]

    def logprobs_and_entropies(self, experience: Experience, compute: Scores) -> tuple[Values, Values] | None:
        """The same, with the entropy of the distribution that each token comes from (nat)."""
        found = Values(), Values()
        for dealt in experience.steps:
            scores = compute(self.packed(experience, dealt))
            for which in (LOGPROBS, ENTROPIES):
                found[which].update(self._of(experience, dealt, scores, which))
        return found if self._place.last_stage else None

    def record(self, experience: Experience, policy: TrainedPolicy) -> tuple[Values | None, Values]:
        """The policy's log-probabilities, and where it sent each token but the last meanwhile: [T - 1, L * k]."""
        logprobs, routing = Values(), Values()
        for dealt in experience.steps:
            batches, rows = self.packed(experience, dealt), dealt[self._replica]
            recorder = policy.recorder(batches)
            logprobs |= self._of(experience, dealt, policy.scores(batches, recorder), LOGPROBS)
            for chosen, batch, told in zip(rows, batches, recorder.arrays(), strict=True):
                starts, lengths = batch.cu_seqlens.tolist()[:-1], experience.table["tokens"][chosen] - 1
                keys = keys_of(experience.table[chosen])
                routing |= {k: told[at : at + n] for k, at, n in zip(keys, starts, lengths, strict=True)}
        return (logprobs if self._place.last_stage else None), routing

    def said(self, values: Mapping[Key, np.ndarray] | None) -> Mapping[Key, np.ndarray]:
        """``values`` on the one rank that speaks for its replica, nothing on the others."""
        return values if values is not None and self._place.speaks else {}

    def summed_difference(self, experience: Experience, plus: Values | None, minus: Values | None) -> np.ndarray:
        """The sum of ``plus - minus`` over each completion, on every rank: float64 [B], 0 where nobody knows it."""
        sums, known = np.zeros(len(experience.table)), self.said(plus)
        if known and minus is not None:
            keys = keys_of(experience.table)
            sums[:] = [(known[k] - minus[k]).sum(dtype=np.float64) if k in known else 0.0 for k in keys]
        return self._control.sum(sums, WAITED_FOR)

    def _of(self, experience: Experience, dealt: Dealt, scores: list[Tensor], which: int) -> Values:
        values = [score[which].numpy() for score in scores]
        return by_key(experience.table, dealt[self._replica], values) if values else {}
