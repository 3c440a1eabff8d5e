"""Every loss, level, KL term and correction: values and gradients against the slow implementation of a whole step.

The step is cut into micro-batches of any order and size, packed, and summed with the tokens' weights: what comes out
must not depend on the cut.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.losses import Options, Sample, gradient, left_out, objective

from grpo_hpc.algo.corrections import RolloutCorrection, entropy_threshold
from grpo_hpc.algo.denominators import ms_swift_weights, token_weights
from grpo_hpc.algo.kl import k3
from grpo_hpc.algo.losses import LOSSES
from grpo_hpc.algo.objective import Objective, TokenData
from grpo_hpc.algo.real import slopes
from grpo_hpc.algo.sequences import Sequences

LEVELS = ["token", "sequence", "sequence_token"]
CORRECTIONS = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def make_step(seed, count=6, spread=0.4):
    """Random completions of random lengths, and the log-probabilities being trained."""
    rng = np.random.default_rng(seed)
    samples, xs = [], []
    for number in range(count):
        x = -rng.uniform(0.1, 5.0, rng.integers(1, 6))
        near = [x + rng.normal(0, spread, len(x)) for _ in range(3)]
        samples.append(
            Sample(f"{number // 3}", rng.normal(), *near, rng.uniform(0, 3, len(x)), truncated=bool(rng.random() < 0.3))
        )
        xs.append(x)
    samples[0].advantage, samples[-1].advantage = 0.0, -1.0
    return samples, xs


def our_objective(o):
    loss = LOSSES[o.loss]
    correction = RolloutCorrection(o.correction, o.upper, o.lower) if o.correction else None
    return Objective(
        loss,
        {name: getattr(o, name) for name in loss.options},
        o.level,
        beta=o.beta,
        kl_estimator=o.kl,
        entropy_coef=o.entropy_coef,
        correction=correction,
        stale_delta=o.stale_delta,
    )


def our_step(o, samples, xs, cut):
    """Loss and gradients [completion][token] of the step, in the micro-batches of ``cut``."""
    kept = [not left_out(o, s) for s in samples]
    weights = token_weights(LOSSES[o.loss].denominator, [len(x) for x in xs], kept, o.longest)
    advantages = [s.advantage for s in samples]
    constant = 0.0
    if LOSSES[o.loss].classifies:
        part = [i for i, keep in enumerate(kept) if keep]
        scores = torch.tensor([np.mean(xs[i] - samples[i].old) for i in part])
        signal, value = slopes(
            scores,
            torch.tensor([advantages[i] for i in part]),
            [len(xs[i]) for i in part],
            [samples[i].group for i in part],
            o.real_tau,
        )
        advantages = [0.0] * len(samples)
        for i, slope in zip(part, signal.tolist(), strict=True):
            advantages[i] = slope
            constant += slope * weights[i] * float(np.sum(xs[i] - samples[i].old))
        constant += value
    threshold = -torch.inf
    if o.top_entropy < 1.0:
        pool = np.concatenate([s.entropy for s, keep in zip(samples, kept, strict=True) if keep])
        threshold = entropy_threshold(torch.tensor(pool), o.top_entropy)
    total, slope_of = constant, {}
    for part in cut:
        loss, slope = micro_batch(our_objective(o), part, samples, xs, advantages, weights, threshold)
        total += loss
        slope_of |= slope
    return total, [slope_of[i] for i in range(len(xs))]


def micro_batch(evaluate, part, samples, xs, advantages, weights, threshold):
    lengths = torch.tensor([len(xs[i]) for i in part])

    def packed(values):
        return torch.tensor(np.concatenate([np.broadcast_to(values(i), len(xs[i])) for i in part]))

    x = packed(lambda i: xs[i]).requires_grad_()
    data = TokenData(
        advantages=packed(lambda i: advantages[i]),
        rollout_logprobs=packed(lambda i: samples[i].rollout),
        old_logprobs=packed(lambda i: samples[i].old),
        ref_logprobs=packed(lambda i: samples[i].ref) if evaluate.beta else None,
        sequences=Sequences.of(lengths),
    )
    result = evaluate(data, x, packed(lambda i: samples[i].entropy), threshold)
    loss = (result.total * packed(lambda i: weights[i])).sum()
    (slope,) = torch.autograd.grad(loss, x)
    return loss.item(), dict(zip(part, slope.split(lengths.tolist()), strict=True))


def random_cut(count, seed):
    rng, rest, cut = random.Random(seed), list(range(count)), []
    rng.shuffle(rest)
    while rest:
        size = rng.randint(1, 3)
        cut.append(rest[:size])
        rest = rest[size:]
    return cut


def check(o, seed):
    samples, xs = make_step(seed)
    loss, slope = our_step(o, samples, xs, random_cut(len(xs), seed))
    assert loss == pytest.approx(objective(o, samples, xs, xs), rel=1e-6, abs=1e-9)
    want = np.concatenate(gradient(o, samples, xs))
    np.testing.assert_allclose(torch.cat(slope).numpy(), want, rtol=2e-5, atol=2e-8)
    return want


KINDS = [(name, level) for name, level in itertools.product(LOSSES, LEVELS) if name != "real" or level == "token"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "level"), KINDS, ids=str)
def test_loss_and_gradient_equal_the_slow_implementation(name, level, seed):
    bounds = {"epsilon": 0.1, "epsilon_high": 1.2 if name == "cispo" else 0.28, "delta": 1.5}
    assert check(Options(name, level, **bounds), seed).any()


def test_every_loss_has_a_reference():
    assert {name for name, _ in KINDS} == set(LOSSES)


@pytest.mark.parametrize(
    "changed",
    [
        {"epsilon_high": None, "delta": None},
        {"loss": "cispo", "epsilon_high": None},
        {"loss": "sapo", "tau_pos": 0.5, "tau_neg": 3.0},
        {"loss": "fipo", "fipo_clip_high_only": False, "fipo_decay_rate": 1.5, "fipo_clip_range": 0.7},
        {"loss": "fipo", "fipo_safety_threshold": 1.1, "fipo_clip_range": 0.7, "delta": 1.2, "epsilon_high": 0.1},
        {"loss": "real", "real_tau": 0.1, "beta": 0.2},
        *({"beta": 0.3, "kl": kl} for kl in ("k1", "k2", "k3")),
        {"entropy_coef": 0.1, "beta": 0.1, "loss": "dapo"},
        *({"correction": mode, "upper": 1.2, "lower": 0.9, "beta": 0.1} for mode in CORRECTIONS),
        {"correction": "token_truncate", "upper": 1.1, "loss": "cispo"},
        {"stale_delta": 0.01, "beta": 0.1},
        {"top_entropy": 0.4, "loss": "dapo", "beta": 0.1},
        {"top_entropy": 0.2, "level": "sequence", "overlong_filter": True},
        *({"overlong_filter": True, "loss": name, "beta": 0.1} for name in LOSSES),
    ],
    ids=lambda changed: ",".join(f"{k}={v}" for k, v in changed.items()),
)
def test_options_equal_the_slow_implementation(changed):
    for seed in range(10, 15):
        check(Options(**({"epsilon": 0.1, "epsilon_high": 0.3} | changed)), seed)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_cut_into_micro_batches_does_not_matter(kind, one, other):
    o = Options(*kind, delta=1.5, beta=0.1, correction=None if kind[0] == "real" else "sequence_mask", upper=1.1)
    samples, xs = make_step(one, count=7)
    whole = our_step(o, samples, xs, [list(range(7))])
    cut = our_step(o, samples, xs, random_cut(7, other))
    assert cut[0] == pytest.approx(whole[0], rel=1e-9)
    torch.testing.assert_close(torch.cat(cut[1]), torch.cat(whole[1]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_advantage_zero_has_no_gradient(name):
    """The trainer leaves such completions out of forward and backward when nothing but the policy loss acts."""
    samples, xs = make_step(3)
    for level in LEVELS if name != "real" else ["token"]:
        o = Options(name, level, correction=None if name == "real" else "token_truncate")
        loss = our_objective(o)
        _, slope = micro_batch(loss, [0, 1], samples, xs, [0.0, 1.0], [1.0, 1.0], -torch.inf)
        assert not slope[0].any() and slope[1].any()
        assert not loss.teaches_without_advantage
        assert replace(loss, entropy_coef=0.1).teaches_without_advantage
        assert replace(loss, beta=0.1).teaches_without_advantage


@pytest.mark.parametrize(("name", "level"), KINDS, ids=str)
def test_the_first_update_is_the_policy_gradient(name, level):
    """On policy the ratio is 1 in value but not in gradient, whether the old log-probabilities are given or not."""
    if name == "real":
        return  # its advantages are slopes of a group's loss: compared with the slow implementation above
    x = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    advantages, sequences = torch.tensor([0.5, 0.5, -2.0], dtype=torch.float64), Sequences.of(torch.tensor([2, 1]))
    slopes_of = []
    for old in (None, x.detach()):
        data = TokenData(advantages, x.detach(), old, None, sequences)
        result = our_objective(Options(name, level))(data, x, torch.zeros(3))
        assert (result.ratio == 1.0).all()
        slopes_of.append(torch.autograd.grad(result.total.sum(), x)[0])
    torch.testing.assert_close(slopes_of[0], -advantages)
    torch.testing.assert_close(slopes_of[1], -advantages)


@pytest.mark.parametrize("far", [100.0, -100.0])
@pytest.mark.parametrize(("name", "level"), KINDS, ids=str)
def test_no_distance_of_two_policies_is_infinite(name, level, far):
    """In fp32, where e^89 is: from the old policy, the reference and the engine, for both signs of the advantage."""
    x = torch.tensor([-120.0, -120.0, -1.0, -1.0], requires_grad=True)
    away = x.detach() + torch.tensor([far, far, 0.1, far])
    data = TokenData(torch.tensor([1.0, 1.0, -1.0, -1.0]), away, away, away, Sequences.of(torch.tensor([2, 2])))
    correction = None if name == "real" else "token_truncate"
    for kl in ("k1", "k2", "k3"):
        o = Options(name, level, beta=0.1, kl=kl, correction=correction, delta=None)
        result = our_objective(o)(data, x, torch.zeros(4))
        (slope,) = torch.autograd.grad(result.total.sum(), x)
        assert all(values.isfinite().all() for values in (result.total, result.ratio, result.kl, slope)), kl


def test_k3_is_what_it_is_called_inside_its_bounds():
    x, ref = torch.zeros(400, dtype=torch.float64, requires_grad=True), torch.linspace(-19.9, 19.9, 400).double()
    value = k3(x, ref)
    torch.testing.assert_close(value, ref.exp() - 1.0 - ref)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], 1.0 - ref.exp())


@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_the_entropy_threshold_keeps_what_the_quantile_keeps(entropies, share):
    values = np.array(entropies, dtype=np.float64)
    place = (1 - share) * (len(values) - 1)
    if min(place % 1, 1 - place % 1) < 1e-9:
        return  # exactly on a token: rounding of the place decides
    threshold = entropy_threshold(torch.tensor(values), share)
    assert ((values >= threshold) == (values >= np.quantile(values, 1 - share))).all() or len(set(entropies)) < len(
        entropies
    )


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=12))
def test_what_the_weights_sum_to(batch):
    lengths, kept = [n for n, _ in batch], [k for _, k in batch]

    def total(weights):
        return sum(w * n for w, n in zip(weights, lengths, strict=True))

    assert total(token_weights("samples", lengths, kept, 50)) == pytest.approx(sum(kept) / len(kept))
    assert total(token_weights("tokens", lengths, kept, 50)) == pytest.approx(float(any(kept)))
    scored = sum(n for n, k in batch if k)
    assert total(token_weights("constant", lengths, kept, 50)) == pytest.approx(scored / (50 * len(batch)))


def test_scaling_of_ms_swift():
    """Megatron there averages over M micro-batches and D replicas what each micro-batch divides by its own count."""
    lengths, kept, size, dp = [3, 5, 2, 6, 1, 4, 4, 2], [True] * 7 + [False], 2, 2
    values = [float(n) for n in range(8)]  # a loss of each token, the same along a completion
    parts = [range(at, at + size) for at in range(0, 8, size)]

    def tokens(part):
        return sum(lengths[i] for i in part if kept[i])

    def summed(part):
        return sum(values[i] * lengths[i] for i in part if kept[i])

    def ours(loss):
        weights = ms_swift_weights(loss, lengths, kept, size, rollout_tokens=60, dp=dp)
        return sum(w * v * n for w, v, n in zip(weights, values, lengths, strict=True))

    assert ours("bnpo") == pytest.approx(sum(summed(part) / tokens(part) for part in parts) / len(parts))
    dapo = sum(summed(part) / (60 / dp) for part in parts) / len(parts)  # N/D per micro-batch, mean over M and D
    assert ours("dapo") == ours("cispo") == ours("fipo") == pytest.approx(dapo)
