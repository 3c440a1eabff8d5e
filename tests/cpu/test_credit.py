"""Advantages and token weights of a rollout, from the run file's options."""

from __future__ import annotations

import numpy as np
import pytest
from reference import estimators as reference
from runfiles import write_run

from grpo_hpc.config import load_run
from grpo_hpc.config.batch import schedule
from grpo_hpc.rollout.sample import LENGTH, Key, Sample, summaries
from grpo_hpc.train.credit import informative, set_advantages, set_token_weights

REWARDS = [0.0, 1.0, 0.5, 0.5] + [1.0] * 4 + [2.0, 1.0, 0.0, 4.0] + [0.3, 0.1, 0.2, 0.2]


def rollout():
    """Summaries of four groups of four; the lengths and reasons differ."""
    samples = [
        Sample.single_turn(
            Key(n // 4, n % 4),
            np.array([1]),
            np.full(1 + n % 5, 2),
            np.full(1 + n % 5, -1.0),
            0,
            "length" if n % 3 == 0 else "stop",
        )
        for n in range(len(REWARDS))
    ]
    table = summaries(samples, 0, 2)
    table["reward"] = table["rewards"][:, 0] = REWARDS
    table["rewards"][:, 1] = [np.nan if n % 4 == 3 else float(n % 2) for n in range(len(REWARDS))]
    return table


def config(tmp_path, **keys):
    return load_run(write_run(tmp_path, tmp_path, **({"global_batch_size": 8, "steps_per_generation": 2} | keys)))


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_plus_plus"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_advantages_with_and_without_kl_in_the_reward(tmp_path, estimator, scale, beta):
    """The KL is k1, summed over the completion."""
    keys = {"beta": beta, "kl_in_reward": True} if beta else {}
    cfg, made = config(tmp_path, advantage_estimator=estimator, scale_rewards=scale, **keys), rollout()
    kl = np.array([(0.5 - n / 10) * (1 + n % 5) for n in range(len(REWARDS))])
    set_advantages(cfg, made, kl if beta else None)
    want = reference.advantages((REWARDS - beta * kl).tolist(), made["position"].tolist(), estimator, scale)
    assert made["advantage"].tolist() == pytest.approx(want, rel=1e-5, abs=1e-5)


def test_the_same_prompt_twice_in_a_rollout_is_two_groups(tmp_path):
    """A group is what shares a position, whatever row stands there."""
    cfg, made = config(tmp_path), rollout()
    set_advantages(cfg, made)
    apart = made["advantage"][:8].copy()
    assert apart[4:].tolist() == [0.0] * 4, "equal rewards teach nothing"
    made["position"][4:8] = 0  # one group of eight
    set_advantages(cfg, made)
    assert (made["advantage"][4:8] > 0).all() and not np.allclose(made["advantage"][:4], apart[:4])


def test_gdpo_takes_the_columns_and_their_weights(tmp_path):
    keys = {"reward_funcs": ["exact_number", "plugin.py:f"], "reward_weights": [1.0, 0.3]}
    cfg, made = config(tmp_path, scale_rewards="gdpo", **keys), rollout()
    set_advantages(cfg, made)
    columns = [[None if np.isnan(x) else x for x in column.tolist()] for column in made["rewards"].T]
    want = reference.gdpo(columns, [1.0, 0.3], made["position"].tolist())
    assert made["advantage"].tolist() == pytest.approx(want, rel=1e-4, abs=1e-4)
    assert informative(cfg, made).tolist() == [True] * 16, "the second group differs in its second column"
    assert informative(config(tmp_path), made).tolist() == [True] * 4 + [False] * 4 + [True] * 8


@pytest.mark.parametrize(
    ("keys", "step", "weight"),
    [
        ({}, 0, lambda lengths, i: 1 / (8 * lengths[i])),
        ({"loss_type": "dapo"}, 1, lambda lengths, i: 1 / sum(lengths)),
        ({"loss_type": "dr_grpo"}, 1, lambda lengths, i: 1 / (8 * 12)),
    ],
)
def test_every_step_has_its_own_denominator(tmp_path, keys, step, weight):
    cfg, made = config(tmp_path, **keys), rollout()
    set_token_weights(cfg, schedule(cfg), made)
    share = made[8 * step : 8 * step + 8]
    lengths = share["sampled"].tolist()
    assert share["token_weight"].tolist() == pytest.approx([weight(lengths, i) for i in range(8)])


def test_cut_off_completions_have_no_weight_and_their_tokens_are_not_counted(tmp_path):
    cfg, made = config(tmp_path, loss_type="dapo", overlong_filter=True), rollout()
    set_token_weights(cfg, schedule(cfg), made)
    cut = made["end"][:8] == LENGTH
    assert set(made["token_weight"][:8][cut]) == {0.0}
    assert (made["token_weight"] * made["sampled"])[:8][~cut].sum() == pytest.approx(1.0)


def test_what_an_engine_gave_up_neither_teaches_nor_divides_by_zero(tmp_path):
    """No token at all, or an answer that was aborted: no weight, and no vote in the baseline of its group."""
    for loss in ("grpo", "dapo", "dr_grpo", "bnpo"):
        cfg, made = config(tmp_path, loss_type=loss), rollout()
        made["sampled"][5], made["answers"][5], made["reward"][5] = 0, False, np.nan
        made["answers"][9], made["reward"][9] = False, np.nan
        set_token_weights(cfg, schedule(cfg), made)
        set_advantages(cfg, made)
        assert made["token_weight"][[5, 9]].tolist() == [0.0, 0.0] and made["advantage"][[5, 9]].tolist() == [0.0, 0.0]
        assert np.isfinite(made["token_weight"]).all() and np.isfinite(made["advantage"]).all()


def test_scaling_of_ms_swift_spans_the_rollout_and_the_micro_batches(tmp_path):
    """Tokens of the whole rollout, times the micro-batches of a rank: too small by steps and accumulation."""
    cfg, made = config(tmp_path, loss_type="dapo", loss_scaling="ms_swift"), rollout()
    plan = schedule(cfg)
    set_token_weights(cfg, plan, made)
    tokens = int(made["sampled"].sum())
    assert plan.accumulation == 4 and made["token_weight"][0] == pytest.approx(1 / (tokens * 4))
