"""Garbage is collected between steps, and only there."""

from __future__ import annotations

import gc
import weakref

import pytest

from grpo_hpc.train.garbage import GarbageControl


class Ring:
    """Refers to itself, so that only the garbage collector finds it."""

    def __init__(self):
        self.me = self


@pytest.fixture
def control():
    made = GarbageControl()
    yield made
    made.close()


def test_nothing_is_collected_within_a_step(control):
    lost = weakref.ref(Ring())
    for _ in range(10):  # Python itself would look after some hundred new objects
        _kept = [[] for _ in range(5000)]
    assert lost() is not None
    control.between_steps()
    assert lost() is None


def test_what_was_there_before_is_not_looked_at(control):
    assert gc.get_freeze_count() > 1000


def test_afterwards_python_decides_again(control):
    assert not gc.isenabled()
    control.close()
    assert gc.isenabled() and gc.get_freeze_count() == 0
