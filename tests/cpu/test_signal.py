"""Advantages and token weights of a rollout, from the run file's options."""

from __future__ import annotations

import pytest
from reference import estimators as reference
from runfiles import write_run

from grpo_hpc.config import load_run
from grpo_hpc.config.batch import schedule
from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train.credit import informative, set_advantages, set_token_weights

REWARDS = [0.0, 1.0, 0.5, 0.5] + [1.0] * 4 + [2.0, 1.0, 0.0, 4.0] + [0.3, 0.1, 0.2, 0.2]


def rollout():
    """Four groups of four; the lengths, reasons and log-probabilities differ."""
    return [
        Trajectory(
            prompt_id=f"p{n // 4}",
            position=n // 4,
            sample=n % 4,
            prompt_tokens=[1],
            response_tokens=[2] * (1 + n % 5),
            rollout_logprobs=[-1.0] * (1 + n % 5),
            finish_reason="length" if n % 3 == 0 else "stop",
            weight_version=0,
            text="",
            rewards={"one": reward, "two": None if n % 4 == 3 else float(n % 2)},
            reward=reward,
            old_logprobs=[-1.0 - n / 10] * (1 + n % 5),
            ref_logprobs=[-1.5] * (1 + n % 5),
        )
        for n, reward in enumerate(REWARDS)
    ]


def config(tmp_path, **keys):
    return load_run(write_run(tmp_path, tmp_path, **({"global_batch_size": 8, "steps_per_generation": 2} | keys)))


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_plus_plus"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_advantages_with_and_without_kl_in_the_reward(tmp_path, estimator, scale, beta):
    """The KL is k1, summed over the completion."""
    kl = {"beta": beta, "kl_in_reward": True} if beta else {}
    cfg, made = config(tmp_path, advantage_estimator=estimator, scale_rewards=scale, **kl), rollout()
    set_advantages(cfg, made)
    rewards = [t.reward - beta * sum(o - r for o, r in zip(t.old_logprobs, t.ref_logprobs, strict=True)) for t in made]
    want = reference.advantages(rewards, [t.prompt_id for t in made], estimator, scale)
    assert [t.advantage for t in made] == pytest.approx(want, rel=1e-5, abs=1e-5)


def test_gdpo_takes_the_columns_and_their_weights(tmp_path):
    keys = {"reward_funcs": ["exact_number", "plugin.py:f"], "reward_weights": [1.0, 0.3]}
    cfg, made = config(tmp_path, scale_rewards="gdpo", **keys), rollout()
    set_advantages(cfg, made)
    columns = [[t.rewards[name] for t in made] for name in ("one", "two")]
    want = reference.gdpo(columns, [1.0, 0.3], [t.prompt_id for t in made])
    assert [t.advantage for t in made] == pytest.approx(want, rel=1e-4, abs=1e-4)
    assert informative(cfg, made) == [True] * 16, "the second group differs in its second column"
    assert informative(config(tmp_path), made) == [True] * 4 + [False] * 4 + [True] * 8


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
    lengths = [len(t.response_tokens) for t in share]
    assert [t.token_weight for t in share] == pytest.approx([weight(lengths, i) for i in range(8)])


def test_cut_off_completions_have_no_weight_and_their_tokens_are_not_counted(tmp_path):
    cfg, made = config(tmp_path, loss_type="dapo", overlong_filter=True), rollout()
    set_token_weights(cfg, schedule(cfg), made)
    kept = [t for t in made[:8] if t.finish_reason != "length"]
    assert {t.token_weight for t in made[:8] if t.finish_reason == "length"} == {0.0}
    assert sum(t.token_weight * len(t.response_tokens) for t in kept) == pytest.approx(1.0)


def test_scaling_of_ms_swift_spans_the_rollout_and_the_micro_batches(tmp_path):
    """Tokens of the whole rollout, times the micro-batches of a rank: too small by steps and accumulation."""
    cfg, made = config(tmp_path, loss_type="dapo", loss_scaling="ms_swift"), rollout()
    plan = schedule(cfg)
    set_token_weights(cfg, plan, made)
    tokens = sum(len(t.response_tokens) for t in made)
    assert plan.accumulation == 4 and made[0].token_weight == pytest.approx(1 / (tokens * 4))
