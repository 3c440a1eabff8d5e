"""The sample order: complete epochs, no repetition within a rollout, a counter as the whole state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.data.sampler import PromptSampler

ROWS = st.integers(1, 40)
COUNTS = st.integers(1, 40)


def walk(sampler, count, total):
    return [index for start in range(0, total, count) for index in sampler.indices(start, count)]


@given(ROWS, COUNTS, st.integers(0, 5), st.booleans())
def test_every_epoch_holds_every_row_once(rows, count, seed, shuffle):
    order = walk(PromptSampler(rows, seed, shuffle), count, 4 * rows)
    for epoch in range(4):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(ROWS, COUNTS, st.integers(0, 200), st.booleans())
def test_no_rollout_holds_a_row_twice(rows, count, start, shuffle):
    count = min(rows, count)
    found = PromptSampler(rows, 1, shuffle).indices(start, count)
    assert len(found) == len(set(found)) == count


@given(ROWS, COUNTS, st.lists(st.integers(0, 150), min_size=1, max_size=5))
def test_a_position_gives_the_same_rows_whatever_was_asked_before(rows, count, starts):
    used = PromptSampler(rows, 3)
    for start in starts:
        assert used.indices(start, count) == PromptSampler(rows, 3).indices(start, count)


def test_neighbouring_calls_agree_about_the_order():
    sampler = PromptSampler(10, 0)
    assert sampler.indices(7, 8)[3:] == sampler.indices(10, 8)[:5]


def test_epochs_and_seeds_are_shuffled_differently():
    sampler = PromptSampler(100, 0)
    first, second = walk(sampler, 4, 100), walk(sampler, 4, 200)[100:]
    assert first != second
    assert first != list(range(100))
    assert first != walk(PromptSampler(100, 1), 4, 100)


def test_a_row_comes_back_after_different_times():
    """Keeping rows apart must not freeze the order: places in neighbouring epochs are nearly independent."""
    order = walk(PromptSampler(200, 0), 8, 400)
    distances = {order.index(row, 200) - order.index(row) for row in range(200)}
    assert min(distances) >= 8
    assert max(distances) > 300 and min(distances) < 100


def test_file_order_without_shuffling():
    assert PromptSampler(3, 0, shuffle=False).indices(2, 3) == [2, 0, 1]
