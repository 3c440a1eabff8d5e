"""Dealing completions over ranks and micro-batches: nothing is lost, limits hold, work is even."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.errors import ConfigError
from grpo_hpc.rollout.trajectory import Trajectory
from grpo_hpc.train.packing import Packing, RowLayout, packing_metrics, with_gradient


def trajectory(number, tokens, advantage=1.0, weight=1.0):
    return Trajectory(str(number), number, 0, [1], [2] * (tokens - 1), [-1.0] * (tokens - 1), "stop", 0, "",
                      advantage=advantage, token_weight=weight)  # fmt: skip


lengths = st.lists(st.integers(2, 60), min_size=12, max_size=36)
layouts = st.sampled_from([RowLayout(), RowLayout(context=2), RowLayout(context=2, sequence=2), RowLayout(sequence=3)])
limits = st.sampled_from([{"size": 1}, {"size": 3}, {"size": 1, "tokens": 80}, {"size": 1, "tokens": 500}])


@given(lengths, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), limits, layouts)
def test_every_completion_once_and_as_many_micro_batches_on_every_rank(tokens, ranks, multiple, limit, layout):
    count = len(tokens) // (ranks * multiple) * ranks * multiple
    everything = [trajectory(n, length) for n, length in enumerate(tokens[:count])]
    dealt = Packing(**limit, layout=layout, multiple=multiple).deal(everything, ranks)
    batches = [batch for mine in dealt for batch in mine]
    assert sorted(t.position for batch in batches for t in batch) == list(range(count))
    assert len(dealt) == ranks and len({len(mine) for mine in dealt}) == 1 and len(dealt[0]) % multiple == 0
    assert all(batches)
    for batch in batches:
        row = layout.padded([t.tokens - 1 for t in batch])
        assert sum(row) % layout.row_multiple == 0 and all(n % layout.sequence_multiple == 0 for n in row)
        if "tokens" in limit:
            assert sum(row) <= limit["tokens"]
        else:
            assert len(batch) <= limit["size"]
    loads = [sum(t.tokens for batch in mine for t in batch) for mine in dealt]
    assert max(loads) - min(loads) <= max(tokens) * (1 if "tokens" not in limit else len(dealt[0]))


def test_token_budget_needs_few_micro_batches_and_fills_them_evenly():
    everything = [trajectory(n, 2 + n % 97) for n in range(512)]
    dealt = Packing(1, tokens=1000).deal(everything, 4)
    metrics = packing_metrics(dealt, RowLayout())
    least = -(-sum(t.tokens - 1 for t in everything) // (4 * 1000))
    assert metrics["packing/micro_batches"] == least
    assert metrics["packing/imbalance"] < 0.01 and metrics["packing/padding_fraction"] == 0.0


def test_padding_is_counted():
    dealt = [[[trajectory(0, 4), trajectory(1, 6)]], [[trajectory(2, 9)]]]  # 3 + 5 and 8 input tokens
    metrics = packing_metrics(dealt, RowLayout(context=2))  # 4 + 8 and 8 with padding
    assert metrics == {
        "packing/micro_batches": 1.0,
        "packing/tokens_per_micro_batch": 8.0,
        "packing/padding_fraction": pytest.approx(1 - 16 / 20),
        "packing/imbalance": pytest.approx(12 / 10 - 1),
    }


def test_a_sequence_beyond_the_budget_is_named():
    with pytest.raises(ConfigError, match=r"a sequence of 50 tokens .* = 40"):
        Packing(1, tokens=40).deal([trajectory(0, 50), trajectory(1, 3)], 1)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=8, max_size=24), st.sampled_from([1, 2, 4]))
def test_what_teaches_is_kept_and_the_number_divides(advantages, ranks):
    everything = [trajectory(n, 5, a) for n, a in enumerate(advantages[: len(advantages) // ranks * ranks])]
    kept = with_gradient(everything, ranks)
    assert len(kept) % ranks == 0 and len(kept) >= ranks
    assert {t.position for t in kept} >= {t.position for t in everything if t.advantage}
    assert len(kept) - sum(t.advantage != 0 for t in kept) < ranks or not any(t.advantage for t in everything)


def test_filtered_completions_teach_nothing_whatever_acts_on_the_others():
    everything = [trajectory(0, 5, 1.0, 0.0), trajectory(1, 5, 0.0), trajectory(2, 5), trajectory(3, 5, 0.0, 0.0)]
    assert [t.position for t in with_gradient(everything, 1)] == [2]
    assert [t.position for t in with_gradient(everything, 1, without_advantage=True)] == [1, 2]
