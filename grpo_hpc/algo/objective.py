"""The whole objective of a token: policy loss, corrections, KL term and entropy bonus.

    rollout weight * keep * policy loss + beta * KL - entropy_coef * entropy

``keep`` is 0 for tokens below the entropy threshold and for stale completions with a negative advantage. The KL term
and the bonus are neither weighted nor masked by what corrects the policy loss.

Shapes: N scored tokens of one micro-batch in packing order, S completions. Each completion is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_hpc.algo.corrections import RolloutCorrection, stale_negatives
from grpo_hpc.algo.kl import KL_ESTIMATORS
from grpo_hpc.algo.losses import Loss, PolicyTokens, TokenLoss
from grpo_hpc.algo.ratios import ratio_of
from grpo_hpc.algo.sequences import Sequences

Level = Literal["token", "sequence", "sequence_token"]


@dataclass(frozen=True)
class TokenData:
    """What is known of a micro-batch's tokens before its forward pass.

    Attributes:
        advantages: [N].
        rollout_logprobs: [N] of the engine that sampled.
        old_logprobs: [N] of the policy that the update started from; None when that is the present one.
        ref_logprobs: [N] of the reference policy; None without a KL term.
        sequences: which tokens belong together.
    """

    advantages: Tensor
    rollout_logprobs: Tensor
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None
    sequences: Sequences


@dataclass(frozen=True)
class Evaluated:
    """Loss of each token, with gradient, and what is worth watching about it, without: each [N].

    Attributes:
        total: what is summed with the tokens' weights.
        policy: bounds that acted in the policy loss.
        ratio: importance weight of the policy loss.
        kl: KL estimate, also when it is no part of the loss; 0 without a reference.
        old: log-probabilities that the update started from.
        kept: False where the entropy threshold or staleness masks the policy loss.
        stale: masked for staleness.
        rollout_weight, outside: correction weight, and where its bounds acted; None without a correction.
    """

    total: Tensor
    policy: TokenLoss
    ratio: Tensor
    kl: Tensor
    old: Tensor
    kept: Tensor
    stale: Tensor
    rollout_weight: Tensor | None
    outside: Tensor | None


@dataclass(frozen=True)
class Objective:
    """The objective of a run.

    Attributes:
        loss: the policy loss.
        options: values of ``loss.options``.
        level: ratio per token; ``sequence``: its geometric mean over the completion (GSPO, arXiv 2507.18071, equation
            7); ``sequence_token``: that value with the token's own gradient (GSPO-token, equation 14).
        beta: weight of the KL term; 0 for none.
        kl_estimator: name in ``KL_ESTIMATORS``.
        entropy_coef: weight of the entropy bonus.
        correction: of the difference between engine and trainer.
        stale_delta: where :func:`stale_negatives` draws the line; None for nowhere.
    """

    loss: Loss
    options: Mapping[str, Any]
    level: Level = "token"
    beta: float = 0.0
    kl_estimator: str = "k3"
    entropy_coef: float = 0.0
    correction: RolloutCorrection | None = None
    stale_delta: float | None = None

    @property
    def teaches_without_advantage(self) -> bool:
        """Whether a completion of advantage 0 has a gradient."""
        return self.beta != 0.0 or self.entropy_coef != 0.0

    def __call__(self, data: TokenData, logprobs: Tensor, entropy: Tensor, threshold: float = -torch.inf) -> Evaluated:
        """Evaluate a micro-batch.

        Args:
            logprobs: [N] of the policy being trained, with gradient.
            entropy: [N], with gradient when ``entropy_coef`` is not 0.
            threshold: tokens with less entropy have no policy loss.
        """
        now = logprobs.detach()
        old = now if data.old_logprobs is None else data.old_logprobs
        log_ratio = logprobs - old
        log_weight = self._log_weight(log_ratio, logprobs, data.sequences)
        policy = self.loss.function(
            PolicyTokens(logprobs, log_ratio, log_weight, data.advantages, data.sequences), **self.options
        )
        stale = torch.zeros_like(now, dtype=torch.bool)
        if self.stale_delta is not None:
            stale = stale_negatives(now, data.rollout_logprobs, data.advantages, data.sequences, self.stale_delta)
        kept = (entropy.detach() >= threshold) & ~stale
        total, weight, outside = policy.loss.masked_fill(~kept, 0.0), None, None
        if self.correction is not None:
            weight, outside = self.correction.weights(old, data.rollout_logprobs, data.sequences)
            total = total * weight
        kl = torch.zeros_like(now)
        if data.ref_logprobs is not None:
            kl = KL_ESTIMATORS[self.kl_estimator](logprobs, data.ref_logprobs)
        if self.beta:
            total = total + self.beta * kl
        if self.entropy_coef:
            total = total - self.entropy_coef * entropy
        ratio = ratio_of(log_weight.detach())
        return Evaluated(total, policy, ratio, kl.detach(), old, kept, stale, weight, outside)

    def _log_weight(self, log_ratio: Tensor, logprobs: Tensor, sequences: Sequences) -> Tensor:
        if self.level == "token":
            return log_ratio
        mean = sequences.spread(sequences.mean(log_ratio))
        if self.level == "sequence":
            return mean
        return mean.detach() + (logprobs - logprobs.detach())
