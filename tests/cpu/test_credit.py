"""Advantages and token weights of a rollout, from the run file's options."""

from __future__ import annotations

import numpy as np
import pytest
from reference import estimators as reference
from runfiles import write_run

from grpo_hpc.config import load_run
from grpo_hpc.config.batch import schedule
from grpo_hpc.rollout.sample import LENGTH, Key, Sample, episode_of, episodes, summaries, turn_rows
from grpo_hpc.train.credit import informative, set_advantages, set_token_weights, set_turn_advantages
from grpo_hpc.train.experience import turns_by_key
from grpo_hpc.train.packing import with_gradient

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


def with_turns(cfg, coef):
    """The run file's options with a weight of turns, which needs an environment there."""
    return cfg.model_copy(update={"algorithm": cfg.algorithm.model_copy(update={"turn_advantage_coef": coef})})


def of_turns(rewards):
    """Summaries and payloads of completions with ``rewards[i]`` for their turns, four to a group."""
    made = {}
    for n, given in enumerate(rewards):
        count = 2 * len(given) if given else 3
        turns = [[2 * k + 2, 0] for k in range(len(given))] or [[count, 0]]
        arrays = np.zeros(count + 1, np.int32), np.arange(count + 1) > 0, np.zeros(count, np.float32)
        told = np.array([np.nan if r is None else r for r in given], np.float32)
        key = Key(n // 4, n % 4)
        made[key] = Sample(key, *arrays, np.zeros(count, np.int32), np.array(turns, np.int32), turn_rewards=told)
    table = summaries(list(made.values()), 0, 1)
    table["reward"] = np.arange(len(rewards)) % 3
    return table, made


TURNS = [
    [0.5, 1.0, None],
    [None],
    [0.0, 0.25],
    [],
    [1.0, 1.0],
    [1.0],
    [1.0, None, 1.0],
    [1.0],
    [3.0],
    [],
    [],
    [-2.0] * 4,
]


def worth(cfg, table, made, order=slice(None)):
    """What turns are worth, by completion; their rows come in any order."""
    turns = turn_rows(table, made)[order]
    set_turn_advantages(cfg, turns)
    return turns_by_key(table, turns)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_turns_are_compared_with_all_turns_of_their_group_and_answer_for_later_ones(tmp_path, scale):
    cfg, (table, made) = with_turns(config(tmp_path, scale_rewards=scale), 0.5), of_turns(TURNS)
    found = worth(cfg, table, made, np.random.default_rng(0).permutation(sum(map(len, TURNS))))
    want = reference.turn_advantages(TURNS, table["position"].tolist(), scale, 0.5)
    for value, expected in zip(found.values(), want, strict=True):
        assert value.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert table["turn_advantage"].tolist() == pytest.approx([max(map(abs, w), default=0) for w in want], abs=1e-6)
    assert not table["turn_advantage"][4:8].any(), "rewards that are all equal teach nothing, however many there are"


def test_a_completion_that_failed_has_no_vote_among_turns(tmp_path):
    cfg, (table, made) = with_turns(config(tmp_path), 1.0), of_turns([[1.0], [0.0], [100.0], [50.0]])
    table["reward"][2], table["answers"][3] = np.nan, False
    found = worth(cfg, table, made)
    assert [value.tolist() for value in found.values()][2:] == [[0.0], [0.0]]
    assert found[Key(0, 0)] == -found[Key(0, 1)] != 0.0


def test_turns_alone_may_make_a_group_worth_training(tmp_path):
    cfg, (table, made) = config(tmp_path), of_turns(TURNS)
    table["reward"] = 1.0
    assert not informative(cfg, table).any()
    cfg = with_turns(cfg, 1.0)
    assert informative(cfg, table).tolist() == [True] * 4 + [False] * 4 + [True] * 4
    table["reward"][8] = np.nan
    assert informative(cfg, table).tolist() == [True] * 4 + [False] * 8, "one turn's reward is left there, four times"
    set_advantages(cfg, table)
    worth(cfg, table, made)
    assert with_gradient(table, 1).tolist() == [0, 2], "those whose turns have a reward"


def in_branches(table):
    """``table`` with every completion cut into one to three branches, and the number of each row's completion."""
    parts = [1 + n % 3 for n in range(len(table))]
    whole = np.repeat(np.arange(len(table)), parts)
    cut = table[whole]
    cut["branch"] = np.concatenate([np.arange(count) for count in parts])
    last = np.append(cut["branch"][1:] == 0, True)
    cut["sampled"] = np.where(last, table["sampled"][whole] + 2, 1)  # two more than the first ones have
    cut["end"] = np.where(last, cut["end"], 0)
    longer = table.copy()
    longer["sampled"] = np.bincount(whole, cut["sampled"])
    return cut, whole, longer


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"scale_rewards": "batch"},
        {"scale_rewards": "gdpo", "reward_funcs": ["exact_number", "plugin.py:f"]},
        {"beta": 0.2, "kl_in_reward": True},
    ],
)
def test_an_episode_counts_once_however_many_sequences_it_became(tmp_path, loss, keys):
    cfg, (cut, whole, longer) = config(tmp_path, loss_type=loss, overlong_filter=True, **keys), in_branches(rollout())
    kl = np.arange(len(cut)) / 10 if "beta" in keys else None
    found = episodes(cut)
    assert episode_of(cut).tolist() == whole.tolist() and len(cut) > len(found)
    for table in (found, longer):
        set_token_weights(cfg, schedule(cfg), table)
        set_advantages(cfg, table, None if kl is None else np.bincount(whole, kl))
    assert found["token_weight"].any() and found["advantage"].any()
    assert found["token_weight"].tolist() == longer["token_weight"].tolist()
    assert found["advantage"].tolist() == longer["advantage"].tolist()
    assert informative(cfg, cut).tolist() == informative(cfg, longer)[whole].tolist()


def test_summaries_of_branches_and_of_episodes(tmp_path):
    def branch(sample, number, count, reason):
        prompt, said = np.array([1]), np.full(count, 2)
        return Sample.single_turn(Key(7, sample, number), prompt, said, np.zeros(count), number, reason)

    made = [branch(0, 0, 3, "stop"), branch(0, 1, 0, "stop"), branch(0, 2, 2, "length")]
    made += [branch(1, 0, 4, "stop"), branch(1, 1, 1, "abort"), branch(2, 0, 5, "stop"), branch(3, 0, 0, "stop")]
    table = summaries(made, 0)
    assert table["answers"].tolist() == [True, False, True, False, False, True, False]
    assert episode_of(table).tolist() == [0, 0, 0, 1, 1, 2, 3]
    found = episodes(table)
    assert found["sampled"].tolist() == [5, 5, 5, 0] and found["turns"].tolist() == [3, 2, 1, 1]
    assert found["end"].tolist()[:1] == [LENGTH] and found["answers"].tolist() == [True, False, True, False]
    assert found["newest"].tolist() == [2, 1, 0, 0] and len(episodes(table[:0])) == 0


def test_branches_of_an_episode_share_what_comes_later(tmp_path):
    """A turn answers for those of later branches, too."""
    cfg, (table, made) = with_turns(config(tmp_path, scale_rewards="none"), 1.0), of_turns([[1.0, 0.0], [3.0], [], []])
    first, second = list(made)[:2]
    table["sample"][1], table["branch"][1] = 0, 1
    key = Key(0, 0, 1)
    made[key] = made.pop(second)
    found = worth(cfg, table, made)
    mean = 4 / 3
    assert found[first].tolist() == pytest.approx([4 - 3 * mean, 3 - 2 * mean], abs=1e-6)
    assert found[key].tolist() == pytest.approx([3 - mean], abs=1e-6)
