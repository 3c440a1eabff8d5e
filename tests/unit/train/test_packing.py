"""Dealing completions over ranks and micro-batches: nothing is lost, limits hold, work is even."""

from __future__ import annotations

import heapq
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grpo_hpc.errors import ConfigError
from grpo_hpc.models.families.counting import count_active, count_by_part
from grpo_hpc.models.families.read_shape import read_shape
from grpo_hpc.models.flops import Cost, sequence_cost
from grpo_hpc.train.packing import Dealing, Packing, RowLayout, packing_metrics, with_gradient

CONFIGS = Path(__file__).parents[3] / "configs" / "models"
COST = Cost(linear=10.0, quadratic=1.0, head=2.0)
FIELDS = [("position", "i8"), ("sample", "i4"), ("branch", "i4"), ("tokens", "i4"), ("sampled", "i4"),
          ("advantage", "f8"), ("turn_advantage", "f4"), ("token_weight", "f8")]  # fmt: skip


def table_of(tokens, advantages=1.0, weights=1.0):
    table = np.zeros(len(tokens), FIELDS)
    table["position"], table["sample"] = np.arange(len(tokens)) // 4, np.arange(len(tokens)) % 4
    table["tokens"], table["sampled"] = tokens, np.maximum(1, np.asarray(tokens) // 2)
    table["advantage"], table["token_weight"] = advantages, weights
    return table


def costs_of(dealt, table, packing):
    costs = packing.costs(table)
    return np.array([[costs[batch].sum() for batch in mine] for mine in dealt])


lengths = st.lists(st.integers(2, 60), min_size=12, max_size=36)
layouts = st.sampled_from([RowLayout(), RowLayout(context=2), RowLayout(context=2, sequence=2), RowLayout(sequence=3)])
limits = st.sampled_from([{"size": 1}, {"size": 3}, {"size": 1, "tokens": 80}, {"size": 1, "tokens": 500}])


@given(lengths, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), limits, layouts, st.booleans())
def test_every_completion_once_and_as_many_micro_batches_on_every_rank(tokens, ranks, multiple, limit, layout, whole):
    step = ranks * multiple
    table = table_of(tokens[: len(tokens) // step * step] if whole else tokens)
    packing = Packing(cost=COST, layout=layout, multiple=multiple, **limit)
    dealt = packing.deal(table, ranks)
    batches = [batch for mine in dealt for batch in mine]
    assert sorted(np.concatenate(batches)) == list(range(len(table)))
    assert len(dealt) == ranks and len({len(mine) for mine in dealt}) == 1 and len(dealt[0]) % multiple == 0
    assert all(len(batch) and batch.dtype == np.int64 for batch in batches)
    crowded = len(table) % step and len(batches) == len(table) // step * step  # as many as there can be
    for batch in batches:
        row = layout.padded([int(n) - 1 for n in table["tokens"][batch]])
        assert sum(row) % layout.row_multiple == 0 and all(n % layout.sequence_multiple == 0 for n in row)
        if crowded:
            continue
        if "tokens" in limit:
            assert sum(row) <= limit["tokens"]
        else:
            assert len(batch) <= limit["size"]
    costs = costs_of(dealt, table, packing)
    bound = costs.max() if "tokens" in limit or not whole else packing.costs(table).max()
    assert np.ptp(costs.sum(axis=1)) <= bound
    if "tokens" in limit:
        assert (costs[:, :-1].min(axis=0) >= costs[:, 1:].max(axis=0)).all(), "like is paired with like"


@given(lengths, st.randoms())
def test_the_order_of_the_table_does_not_matter(tokens, random):
    table = table_of(tokens)
    places = random.sample(range(len(table)), len(table))
    for packing in (Packing(len(table), COST), Packing(1, COST, tokens=500)):
        dealt, again = packing.deal(table, 2), packing.deal(table[places], 2)
        for mine, mine_again in zip(dealt, again, strict=True):
            for batch, batch_again in zip(mine, mine_again, strict=True):
                assert table[batch].tolist() == table[places][batch_again].tolist()


def test_token_budget_needs_few_micro_batches_and_fills_them_evenly():
    table = table_of([2 + n % 97 for n in range(512)])
    packing = Packing(1, COST, tokens=1000)
    metrics = packing_metrics(packing.deal(table, 4), table, packing)
    assert metrics["packing/micro_batches"] == -(-(table["tokens"] - 1).sum() // (4 * 1000))
    assert metrics["packing/imbalance"] < 0.01 and metrics["packing/padding_fraction"] == 0.0


@given(
    st.lists(st.integers(2, 300), min_size=8, max_size=60),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([COST, Cost(linear=1.0, head=50.0)]),
    st.integers(0, 99),
)
def test_never_more_micro_batches_than_evening_out_tokens_needs(tokens, ranks, cost, seed):
    table = table_of(tokens)
    table["sampled"] = np.random.default_rng(seed).integers(1, table["tokens"])  # the longest may not cost most
    bins = next(n for n in range(ranks, 10_000, ranks) if max(even_in_tokens(tokens, n)[0]) <= 400)
    assume(bins <= len(tokens))
    assert len(Packing(1, cost, tokens=400).deal(table, ranks)[0]) * ranks <= bins


def even_in_tokens(tokens, bins):
    """The fullest first: tokens in each bin, and its items, when the longest goes to the one with the fewest tokens."""
    heap = [(0, number, []) for number in range(bins)]
    for item in sorted(range(len(tokens)), key=lambda item: -tokens[item]):
        load, number, members = heapq.heappop(heap)
        heapq.heappush(heap, (load + tokens[item] - 1, number, [*members, item]))
    heap.sort(key=lambda found: (-found[0], found[1]))
    return [load for load, _, _ in heap], [members for _, _, members in heap]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("completions", "ranks"), [(1024, 8), (4096, 64)])
def test_long_tailed_lengths_cost_the_ranks_nearly_the_same_in_every_micro_batch(completions, ranks, seed):
    """Causal attention over 64k tokens costs four times what the products of Qwen3-30B-A3B do."""
    cost = sequence_cost(read_shape(CONFIGS / "Qwen3-30B-A3B.json"))
    drawn = np.random.default_rng(seed).lognormal(np.log(6000), 1.2, completions)
    table = table_of(np.clip(drawn, 8, 65_536).astype(np.int64))
    packing = Packing(1, cost, tokens=66_000)
    dealt = packing.deal(table, ranks)
    even = costs_of(dealt, table, packing)
    loads, members = even_in_tokens(table["tokens"].tolist(), even.size)
    assert max(loads) <= packing.tokens, "tokens evened out need as many micro-batches"
    before = [[members[n] for n in range(rank, even.size, ranks)] for rank in range(ranks)]
    assert worst(costs_of(before, table, packing)) > 2.5
    assert worst(even) <= 1.3
    assert packing_metrics(dealt, table, packing)["packing/imbalance"] <= 0.03


def worst(costs):
    """The costliest micro-batch over the cheapest that runs at the same time."""
    return (costs.max(axis=0) / costs.min(axis=0)).max()


def test_cost_of_a_sequence():
    shape = read_shape(CONFIGS / "Qwen3-30B-A3B.json")
    cost = sequence_cost(shape)
    counts = count_by_part(shape)
    active = count_active(shape) - counts.embedding - counts.output
    assert cost == Cost(2.0 * active, 2.0 * 48 * 32 * 128, 2.0 * 151_936 * 2048)
    assert cost.of(1000.0, 10.0) == pytest.approx(2e3 * active + 393_216e6 + 6.22329856e9)


def test_padding_and_waiting_are_counted():
    table = table_of([4, 6, 9])
    packing = Packing(2, Cost(1.0), layout=RowLayout(context=2))
    dealt = [[np.array([0, 1])], [np.array([2])]]  # 3 + 5 and 8 input tokens, 4 + 8 and 8 with padding
    assert packing_metrics(dealt, table, packing) == {
        "packing/micro_batches": 1.0,
        "packing/tokens_per_micro_batch": 8.0,
        "packing/padding_fraction": pytest.approx(1 - 16 / 20),
        "packing/imbalance": 0.0,
    }
    two = [[np.array([0]), np.array([1])], [np.array([2]), np.array([0])]]  # 3 waits for 8, then 3 waits for 5
    waited = packing_metrics(two, table, packing)["packing/imbalance"]
    assert waited == pytest.approx((8 + 5) / ((3 + 8) / 2 + (5 + 3) / 2) - 1)


def test_a_sequence_beyond_the_budget_is_named():
    with pytest.raises(ConfigError, match=r"a sequence of 50 tokens .* = 40"):
        Packing(1, COST, tokens=40).deal(table_of([50, 3]), 1)


@pytest.mark.parametrize(
    ("packing", "tokens", "ranks", "reason"),
    [
        (Packing(4, COST, multiple=2), [5] * 3, 2, r"3 completions cannot fill 2 micro-batches .*\n.*At least 4"),
        (Packing(1, COST, tokens=10), [], 2, r"0 completions cannot fill 1 micro-batches"),
        (Packing(2, COST), [], 2, r"0 completions cannot fill 1 micro-batches"),
        (Packing(2, COST), [5], 2, r"1 completions cannot fill 1 micro-batches"),
    ],
)
def test_too_few_completions(packing, tokens, ranks, reason):
    with pytest.raises(ConfigError, match=reason):
        packing.deal(table_of(tokens), ranks)


@pytest.mark.parametrize("packing", [Packing(1, COST), Packing(1, COST, tokens=10)])
def test_where_there_are_too_few_for_one_each_the_cheapest_share_a_micro_batch(packing):
    dealt = packing.deal(table_of([10, 8, 9, 7, 6]), 2)
    assert sorted(sorted(batch.tolist()) for mine in dealt for batch in mine) == [[0], [1], [2], [3, 4]]


def test_shares_may_differ_by_one():
    dealt = Packing(3, COST).deal(table_of([9, 8, 7, 6, 5]), 2)
    assert [[len(batch) for batch in mine] for mine in dealt] == [[3], [2]]


def test_a_step_is_so_many_episodes_whatever_they_became():
    """Eight episodes, the even ones of two sequences; one of the others was given up, and the cheapest two share."""
    whole = table_of([30, 29, 28, 27, 26, 25, 24, 23])
    table = np.zeros(12, [*FIELDS, ("answers", "?")])
    for name in whole.dtype.names:
        table[name] = whole[name][[0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]]
    table["branch"], table["answers"] = [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0], np.arange(12) != 8
    first, second = Dealing(Packing(1, COST), size=4, ranks=2).deal(table)
    assert sorted(sorted(batch.tolist()) for mine in first for batch in mine) == [[0], [1], [2], [3], [4], [5]]
    assert sorted(sorted(batch.tolist()) for mine in second for batch in mine) == [[6], [7], [9], [10, 11]]


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=8, max_size=24), st.sampled_from([1, 2, 4]))
def test_what_teaches_is_kept_and_the_number_divides(advantages, ranks):
    advantages = advantages[: len(advantages) // ranks * ranks]
    kept = with_gradient(table_of([5] * len(advantages), advantages), ranks)
    teaching = {n for n, advantage in enumerate(advantages) if advantage}
    assert len(kept) % ranks == 0 and len(kept) >= ranks and len(set(kept)) == len(kept)
    assert set(kept) >= teaching and list(kept)[: len(teaching)] == sorted(teaching)
    assert len(kept) - len(teaching) < ranks or not teaching


def test_filtered_completions_teach_nothing_whatever_acts_on_the_others():
    table = table_of([5] * 4, [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0])
    assert with_gradient(table, 1).tolist() == [2]
    assert with_gradient(table, 1, without_advantage=True).tolist() == [1, 2]
