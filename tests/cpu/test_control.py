"""Waiting for other ranks has a limit, and what strikes says what was waited for."""

from __future__ import annotations

from ranks import run_ranks


def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_the_limit():
    run_ranks("late", 2)
