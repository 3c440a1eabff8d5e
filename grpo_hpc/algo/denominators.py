"""Denominators: the weight of every token in the loss, fixed before an optimizer step is split.

The loss of a step is a plain sum of weighted tokens over micro-batches and ranks, so it is exact for every split. A
completion that is filtered out has weight 0: its tokens are not counted in a token mean, and it stays one of the
samples.

Shapes: B completions of one optimizer step, on all ranks, in sampling order.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo_hpc.algo.losses import Denominator


def token_weights(denominator: Denominator, lengths: Sequence[int], kept: Sequence[bool], longest: int) -> list[float]:
    """Weight of each token of each completion: B values.

    ``samples``: ``1 / (B |o_i|)``, the mean over completions of token means (GRPO). ``tokens``: one over all
    kept tokens of the step (DAPO). ``constant``: ``1 / (B * longest)`` (Dr. GRPO).

    Args:
        lengths: scored tokens of each completion.
        kept: False for completions that are filtered out.
        longest: ``max_completion_length``.
    """
    if denominator == "samples":
        each = [1.0 / (len(lengths) * max(length, 1)) for length in lengths]
    elif denominator == "constant":
        each = [1.0 / (len(lengths) * longest)] * len(lengths)
    else:
        tokens = sum(length for length, keep in zip(lengths, kept, strict=True) if keep)
        each = [1.0 / max(tokens, 1)] * len(lengths)
    return [weight if keep else 0.0 for weight, keep in zip(each, kept, strict=True)]


def ms_swift_weights(
    loss: str, lengths: Sequence[int], kept: Sequence[bool], micro_batch_size: int, rollout_tokens: int, dp: int
) -> list[float]:
    """The weights that ms-swift's Megatron GRPO gives to the losses whose denominator is not exact there: B values.

    ``bnpo`` averages the token means of its micro-batches. ``dapo``, ``cispo`` and ``fipo`` divide by the tokens of the
    whole rollout (filtered ones too) and again by the number of micro-batches of a rank: they are too small by the
    steps per rollout and by the accumulation. All other losses are as in :func:`token_weights`.

    Args:
        rollout_tokens: scored tokens of the whole rollout.
        dp: data-parallel replicas.
    """
    count = len(lengths)
    if loss != "bnpo":
        each = [1.0 / (rollout_tokens * (count / (micro_batch_size * dp)))] * count
        return [weight if keep else 0.0 for weight, keep in zip(each, kept, strict=True)]
    found: list[float] = []
    for at in range(0, count, micro_batch_size):
        inside = list(zip(lengths, kept, strict=True))[at : at + micro_batch_size]
        tokens = max(sum(length for length, keep in inside if keep), 1)
        share = len(inside) / count
        found += [share / tokens if keep else 0.0 for _, keep in inside]
    return found
