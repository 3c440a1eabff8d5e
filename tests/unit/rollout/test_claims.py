from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.rollout.claims import deal
from grpo_hpc.rollout.sample import Key

ALL = 10**6  # places enough for everything at once


def dealt(prompts, samples, replicas, places=ALL, longest=8192):
    """The deal of ``samples`` completions of each of ``prompts``, which are lengths."""
    keys = [Key(position, number) for position in range(len(prompts)) for number in range(samples)]
    return keys, deal(keys, np.repeat(prompts, samples).tolist(), replicas, places, longest)


def replica_of(prompts, samples, replicas):
    """The replica of each completion where all are begun at once."""
    keys, found = dealt(prompts, samples, replicas)
    of_key = {key: replica for replica, share in enumerate(found.shares) for key in share}
    return np.array([of_key[key] for key in keys])


def fullest(engines, each, samples, assigned):
    """Tokens of the fullest engine over the mean, on average over rollouts whose lengths resemble within groups."""
    found = []
    for seed in range(50):
        random = np.random.default_rng(seed)
        group = random.normal(0.0, 0.6, (engines * each // samples, 1))
        lengths = np.exp(group + random.normal(0.0, 0.4, (len(group), samples))).ravel()
        loads = np.bincount(assigned, lengths, engines)
        found.append(loads.max() / loads.mean())
    return np.mean(found)


@pytest.mark.parametrize(("engines", "each", "samples"), [(16, 64, 8), (16, 64, 16), (16, 64, 32), (32, 128, 16)])
def test_the_fullest_engine_has_little_more_than_the_mean(engines, each, samples):
    assigned = replica_of([500] * (engines * each // samples), samples, engines)
    assert fullest(engines, each, samples, assigned) <= 1.15
    together = np.arange(engines * each) // each
    assert fullest(engines, each, samples, together) >= 1.4, "completions of a prompt on one engine"


def test_few_completions_on_many_engines_are_uneven_and_less_so_than_groups_kept_together():
    assigned = replica_of([500] * 64, 16, 64)
    assert fullest(64, 16, 16, assigned) <= 1.5
    assert fullest(64, 16, 16, np.arange(1024) // 16) >= 3.0


@given(
    st.lists(st.integers(1, 50_000), max_size=20),
    st.integers(1, 16),
    st.integers(1, 20),
    st.sampled_from([64, 8192]),
    st.integers(1, 30),
    st.randoms(),
)
def test_every_completion_is_sampled_once_whoever_has_room_first(prompts, samples, replicas, longest, places, random):
    keys, found = dealt(prompts, samples, replicas, places, longest)
    assert np.ptp([len(share) for share in found.shares]) <= 1 and all(len(s) <= places for s in found.shares)
    numbers = itertools.count()
    waiting = {replica: found.claimed(replica, lambda: next(numbers)) for replica in range(replicas)}
    sampled = []
    while waiting:
        replica = random.choice(list(waiting))
        key = next(waiting[replica], None)
        sampled.append(key) if key is not None else waiting.pop(replica)
    assert sorted(sampled) == keys


def test_prompts_that_take_longer_to_read_than_to_answer_are_read_once():
    assert replica_of([40_000, 20_000], 2, 2).tolist() == [0, 1, 0, 1]
    _, found = dealt([40_000, 20_000], 2, 2, longest=1024)
    assert found.shares == [[Key(0, 0), Key(0, 1)], [Key(1, 0), Key(1, 1)]]
    _, found = dealt([40_000] * 5, 2, 2, places=2, longest=1024)
    assert found.queue == [[Key(n, 0), Key(n, 1)] for n in (2, 3, 4)]
