"""The policy losses, token by token.

Adding one means writing one function under :func:`loss`, and its slow reference in ``tests/cpu/reference``. Its
keyword-only parameters are keys of the run file's section ``algorithm``; a key that the chosen loss does not have is an
error there. Nothing here imports torch when it is loaded: the run file and the command line read this registry.

A loss is minimised. What it returns is summed over all tokens of an optimizer step with weights that were fixed before
the step was split (:mod:`grpo_hpc.algo.denominators`): ``denominator`` names them. Ratios are those of
:mod:`grpo_hpc.algo.ratios`, which are finite.

Shapes: N scored tokens of one micro-batch in packing order, S completions. Each completion is whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from grpo_hpc.algo.ratios import ratio_of

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_hpc.algo.sequences import Sequences

Denominator = Literal["samples", "tokens", "constant"]

DENOMINATORS: dict[Denominator, str] = {
    "samples": "tokens of the completion, then completions of the step",
    "tokens": "tokens of the step",
    "constant": "completions of the step times max_completion_length",
}


@dataclass(frozen=True)
class PolicyTokens:
    """What a loss is made of.

    Attributes:
        logprobs: [N] of the policy being trained, with gradient.
        log_ratio: [N] ``log pi - log pi_old`` of each token, with gradient.
        log_weight: [N] logarithm of the importance weight at the level that was asked for, with gradient.
        advantages: [N].
        sequences: which tokens belong together.
    """

    logprobs: Tensor
    log_ratio: Tensor
    log_weight: Tensor
    advantages: Tensor
    sequences: Sequences


@dataclass(frozen=True)
class TokenLoss:
    """Loss of each token [N], and where a bound stopped the gradient: [N] bool, None when there is no such bound."""

    loss: Tensor
    low: Tensor | None = None
    high: Tensor | None = None


LossFunction = Callable[..., TokenLoss]


@dataclass(frozen=True)
class Loss:
    """One policy loss.

    Attributes:
        source: the paper.
        denominator: what the sum over tokens is divided by.
        function: :class:`PolicyTokens` and options -> :class:`TokenLoss`.
        classifies: the loss compares the completions of a group with each other. Its ``advantages`` are made before
            each step by :mod:`grpo_hpc.algo.real`.
    """

    name: str
    source: str
    denominator: Denominator
    function: LossFunction
    classifies: bool = False

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").splitlines()[0]

    @property
    def options(self) -> tuple[str, ...]:
        """Keys of the run file that this loss reads."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


LOSSES: dict[str, Loss] = {}


def loss(
    name: str, *, source: str, denominator: Denominator, classifies: bool = False
) -> Callable[[LossFunction], LossFunction]:
    """Decorator: make a function known as the loss ``name``."""

    def register(function: LossFunction) -> LossFunction:
        LOSSES[name] = Loss(name, source, denominator, function, classifies)
        return function

    return register


@loss("dapo", source="DAPO, arXiv 2503.14476, equation 8", denominator="tokens")
@loss("dr_grpo", source="Dr. GRPO, arXiv 2503.20783, section 3.2", denominator="constant")
@loss("bnpo", source="TRL's bnpo: DAPO's loss with the mean taken over a batch", denominator="tokens")
@loss("grpo", source="DeepSeekMath, arXiv 2402.03300, equation 3; dual clip: arXiv 1912.09729", denominator="samples")
def clipped_surrogate(
    tokens: PolicyTokens, *, epsilon: float, epsilon_high: float | None, delta: float | None
) -> TokenLoss:
    """PPO's clipped surrogate: -min(min(rho, delta) A, clip(rho, 1 - epsilon, 1 + epsilon_high) A).

    ``epsilon_high`` is ``epsilon`` when it is None. ``delta`` bounds the ratio of tokens with a negative advantage,
    which the minimum leaves unbounded above.
    """
    low, high = 1.0 - epsilon, 1.0 + (epsilon if epsilon_high is None else epsilon_high)
    ratio, advantages = ratio_of(tokens.log_weight), tokens.advantages
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    value = (bounded * advantages).minimum(ratio.clamp(low, high) * advantages)
    is_high = (ratio > high) & (advantages > 0)
    if delta is not None:
        is_high = is_high | ((ratio > delta) & (advantages < 0))
    return TokenLoss(-value, (ratio < low) & (advantages < 0), is_high)


@loss("cispo", source="MiniMax-M1, arXiv 2506.13585, equation 4", denominator="tokens")
def cispo(tokens: PolicyTokens, *, epsilon_high: float | None) -> TokenLoss:
    """Policy gradient under a bounded importance weight: -sg(min(rho, epsilon_high)) A log pi.

    ``epsilon_high`` is the largest weight itself, 5 when it is None. No token loses its gradient.
    """
    weight = ratio_of(tokens.log_weight.detach())
    bounded = weight.clamp(max=5.0 if epsilon_high is None else epsilon_high)
    return TokenLoss(-bounded * tokens.advantages * tokens.logprobs, high=weight > bounded)


@loss("sapo", source="SAPO, arXiv 2511.20347, equations 4-6", denominator="samples")
def sapo(tokens: PolicyTokens, *, tau_pos: float, tau_neg: float) -> TokenLoss:
    """A soft gate instead of a clip: -(4 / tau) sigmoid(tau (rho - 1)) A.

    The factor 4 / tau gives the gate slope 1 at rho = 1, so the first step is the policy gradient.
    """
    ratio, advantages = ratio_of(tokens.log_weight), tokens.advantages
    tau = advantages.new_full(advantages.shape, tau_neg).masked_fill(advantages > 0, tau_pos)
    return TokenLoss(-(4.0 / tau) * (tau * (ratio - 1.0)).sigmoid() * advantages)


@loss("fipo", source="FIPO, arXiv 2603.19835", denominator="tokens")
def fipo(
    tokens: PolicyTokens,
    *,
    epsilon: float,
    epsilon_high: float | None,
    delta: float | None,
    fipo_decay_rate: float,
    fipo_clip_range: float,
    fipo_clip_high_only: bool,
    fipo_safety_threshold: float | None,
) -> TokenLoss:
    """The clipped surrogate times a weight from the future: exp(sum over k >= t of gamma^(k-t) log rho_k), clamped.

    ``gamma = 2^(-1 / fipo_decay_rate)``. The weight has no gradient. Tokens whose ratio is above ``delta`` add nothing
    to the sum. The weight is clamped to ``[1 - c, 1 + c]``, or from 1 up with ``fipo_clip_high_only``; where the
    advantage is negative and the ratio above ``fipo_safety_threshold``, further to ``[0.8, 1]``.
    """
    surrogate = clipped_surrogate(tokens, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta)
    log_ratio = tokens.log_ratio.detach()
    ratio = ratio_of(log_ratio)
    counted = log_ratio if delta is None else log_ratio.masked_fill(ratio > delta, 0.0)
    future = tokens.sequences.discounted_suffix(counted, 2.0 ** (-1.0 / fipo_decay_rate))
    weight = ratio_of(future).clamp(1.0 if fipo_clip_high_only else 1.0 - fipo_clip_range, 1.0 + fipo_clip_range)
    if fipo_safety_threshold is not None:
        risky = (tokens.advantages < 0) & (ratio > fipo_safety_threshold)
        weight = weight.clamp(0.8, 1.0).where(risky, weight)
    return TokenLoss(surrogate.loss * weight, surrogate.low, surrogate.high)


@loss("real", source="Rewards as Labels, arXiv 2602.05630", denominator="tokens", classifies=True)
def real(tokens: PolicyTokens, *, real_tau: float) -> TokenLoss:
    """Rewards as labels: log(1 + sum_neg e^(s/tau)) + log(1 + sum_pos e^(-s/tau)), s = mean of log rho.

    The sums run over a group, which the split of a step may tear apart. So the slope of the whole group's loss in each
    completion's s is computed before the step (:func:`grpo_hpc.algo.real.slopes`, where ``real_tau`` acts) and comes
    here as the advantage: this function is linear, with exactly that gradient.
    """
    del real_tau
    return TokenLoss(-tokens.advantages * tokens.log_ratio)
