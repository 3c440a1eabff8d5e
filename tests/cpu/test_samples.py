"""Samples: what they hold, how they travel, and how several turns of one become a micro-batch."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks

from grpo_hpc.errors import RolloutError
from grpo_hpc.rollout.exchange import from_payloads, payload_bytes, payloads
from grpo_hpc.rollout.sample import (
    REASONS,
    Key,
    Sample,
    in_order,
    keys_of,
    summaries,
)
from grpo_hpc.train.experience import Experience
from grpo_hpc.train.packing import WHOLE_ROW

CPU = torch.device("cpu")


@st.composite
def samples(draw):
    """Any mask but one that begins with a sampled token: turns side by side, one at the end, none at all."""
    mask = np.array([False, *draw(st.lists(st.booleans(), max_size=30))])
    sampled = int(mask.sum())
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    ends = sorted({*draw(st.lists(st.integers(0, sampled), max_size=3)), sampled})
    turns = np.array([(end, draw(st.integers(0, len(REASONS) - 1))) for end in ends], np.int32)
    width = draw(st.sampled_from([0, 6]))
    routing = rng.integers(0, 200, (len(mask) - 1, width)).astype(draw(st.sampled_from([np.uint8, np.int16])))
    return Sample(
        Key(draw(st.integers(0, 2**40)), draw(st.integers(0, 99)), draw(st.integers(0, 3))),
        rng.integers(0, 2**31 - 1, len(mask)).astype(np.int32),
        mask,
        rng.normal(size=sampled).astype(np.float32),
        rng.integers(0, 1000, sampled).astype(np.int32),
        turns,
        routing if width and len(mask) > 1 else np.zeros((0, 0), np.uint8),
        draw(st.sampled_from([np.zeros(0, np.float32), rng.choice([np.nan, 1.5, -2], len(turns)).astype(np.float32)])),
    )


@given(st.lists(samples(), min_size=1, max_size=5, unique_by=lambda sample: sample.key[:2]))
def test_a_payload_gives_the_sample_back(made):
    table = summaries(made, owner=3, rewards=2)
    assert keys_of(in_order(table)) == sorted(sample.key for sample in made)
    flat = payloads(made)
    for sample, row, size, again in zip(
        made, table, payload_bytes(table), from_payloads(keys_of(table), table, flat).values(), strict=True
    ):
        assert len(payloads([sample])) == size
        for field in fields(sample):
            old, new = getattr(sample, field.name), getattr(again, field.name)
            assert np.array_equal(new, old, equal_nan=field.name == "turn_rewards"), field.name
        assert not again.tokens.flags.writeable and not sample.mask.flags.writeable
        assert row["answers"] == (len(sample.logprobs) > 0 and sample.reason not in ("abort", "error"))


def test_a_summary_and_a_token_are_small():
    sample = Sample.single_turn(Key(0, 0), np.arange(1000), np.arange(7000), np.zeros(7000), 4, "stop")
    assert summaries([sample], 0, rewards=3).nbytes <= 136
    assert payload_bytes(summaries([sample], 0))[0] <= 13 * 8000 + 8


@given(st.lists(samples().filter(lambda s: len(s.logprobs)), min_size=1, max_size=4, unique_by=lambda s: s.key))
def test_whatever_the_mask_each_sampled_token_is_scored_once_and_no_other(made):
    """Against a loop over labels: position p predicts token p + 1."""
    made = [replace(sample, routing=np.zeros((0, 0), np.uint8)) for sample in made]
    weights = [0.1 * (n + 1) for n in range(len(made))]
    table = summaries(made, 0)
    table["advantage"], table["token_weight"] = range(len(made)), weights
    turns = {s.key: np.arange(s.turn_rewards.size, dtype=np.float32) + 10 * n for n, s in enumerate(made)}
    experience = Experience(table, [], {sample.key: sample for sample in made}, turns=turns)
    batch = experience.pack(np.arange(len(made)), CPU, WHOLE_ROW)
    labels, places, log_probs, weight, advantages = [], [], [], [], []
    row, taken_of = 0, [list[int]() for _ in made]
    for number, sample in enumerate(made):
        taken = iter(sample.logprobs.tolist())
        for place in range(len(sample.tokens) - 1):
            if sample.mask[place + 1]:
                labels.append(int(sample.tokens[place + 1]))
                places.append(row)
                log_probs.append(next(taken))
                weight.append(weights[number])
                turn = next(k for k, (end, _) in enumerate(sample.turns) if len(taken_of[number]) < end)
                taken_of[number].append(place)
                advantages.append(number + (turns[sample.key][turn] if sample.turn_rewards.size else 0.0))
            row += 1
    assert batch.input_ids.shape[1] == row
    assert batch.loss_mask[0].nonzero()[:, 0].tolist() == places
    assert batch.labels[batch.loss_mask].tolist() == labels
    assert batch.rollout_logprobs.tolist() == log_probs
    torch.testing.assert_close(batch.token_weights, torch.tensor(weight))
    torch.testing.assert_close(batch.advantages, torch.tensor(advantages))
    assert batch.sequences.lengths.tolist() == [len(sample.logprobs) for sample in made]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mask": [True, True, True]}, "begins with a sampled token"),
        ({"logprobs": [0.0]}, "log-probabilities for 1 where there are 2"),
        ({"versions": [0, 0, 0]}, "versions for 3 where there are 2"),
        ({"turns": [[1, 0]]}, "turns for 1 where there are 2"),
        ({"routing": [[1, 2]]}, "routing for 1 where there are 2"),
        ({"turn_rewards": [1.0, 2.0]}, "rewards of turns for 2 where there are 1"),
        ({"turn_rewards": [np.inf]}, "a turn has an infinite reward"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changed, said):
    arrays = {
        "tokens": np.array([5, 6, 7], np.int32),
        "mask": np.array([False, True, True]),
        "logprobs": np.zeros(2, np.float32),
        "versions": np.zeros(2, np.int32),
        "turns": np.array([[2, 0]], np.int32),
    }
    if "mask" in changed:
        changed = changed | {"logprobs": [0.0] * 3, "versions": [0] * 3, "turns": [[3, 0]]}
    with pytest.raises(RolloutError, match=said):
        Sample(Key(1, 2), **arrays | {name: np.array(value) for name, value in changed.items()})


def test_what_some_completions_lack_is_an_error_and_never_a_ratio_of_one():
    made = [Sample.single_turn(Key(n, 0), np.arange(3), np.arange(2), np.zeros(2), 0, "stop") for n in range(2)]
    experience = Experience(summaries(made, 0), [], {sample.key: sample for sample in made})
    rows = np.arange(2)
    assert experience.pack(rows, CPU, WHOLE_ROW).old_logprobs is None
    for name, what in (("old", "old log-prob"), ("ref", "reference log-prob"), ("routing", "recorded routing")):
        setattr(experience, name, {Key(0, 0): np.zeros((2, 3), np.float32)})
        with pytest.raises(ValueError, match=rf"completion \(1, 0, 0\) has no {what}"):
            experience.pack(rows, CPU, WHOLE_ROW)
        setattr(experience, name, None)


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_payload_goes_once_to_where_it_is_trained(ranks, tmp_path):
    run_ranks("exchange", ranks, tmp_path)
