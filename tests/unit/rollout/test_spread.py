from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.rollout.spread import spread


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
    assigned = spread([500] * (engines * each // samples), samples, engines, 8192)
    assert fullest(engines, each, samples, assigned) <= 1.15
    together = np.arange(engines * each) // each
    assert fullest(engines, each, samples, together) >= 1.4, "completions of a prompt on one engine"


def test_few_completions_on_many_engines_are_uneven_and_less_so_than_groups_kept_together():
    assigned = spread([500] * 64, 16, 64, 8192)
    assert fullest(64, 16, 16, assigned) <= 1.5
    assert fullest(64, 16, 16, np.arange(1024) // 16) >= 3.0


@given(
    st.lists(st.integers(1, 50_000), max_size=20), st.integers(1, 16), st.integers(1, 20), st.sampled_from([64, 8192])
)
def test_every_completion_has_an_engine_and_engines_as_many_as_each_other(prompts, samples, engines, longest):
    assigned = spread(prompts, samples, engines, longest)
    assert assigned.dtype == np.int32 and assigned.shape == (len(prompts) * samples,)
    assert np.ptp(np.bincount(assigned, minlength=engines)) <= 1


def test_prompts_that_take_longer_to_read_than_to_answer_are_read_once():
    assert spread([40_000, 20_000], 2, 2, 1024).tolist() == [0, 0, 1, 1]
    assert spread([4000, 2000], 2, 2, 1024).tolist() == [0, 1, 0, 1]
