from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.rollout.residency import ENGINE, Move, Part, Residency, Use

residencies = st.builds(
    Residency, sleep_level=st.sampled_from([0, 1, 2]), offload_model=st.booleans(), offload_optimizer=st.booleans()
)


def follow(residency: Residency, uses: list[Use]) -> list[frozenset[Part]]:
    now, seen = residency.parts(Use.ROLLOUT), []
    for use in uses:
        for move in residency.moves(now, use):
            assert (move.part in now) != move.enters, "nothing enters twice or leaves twice"
            now = now | {move.part} if move.enters else now - {move.part}
        seen.append(now)
    return seen


@given(residencies, st.lists(st.sampled_from(list(Use)), max_size=12))
def test_every_use_finds_what_it_needs(residency: Residency, uses: list[Use]) -> None:
    for use, now in zip(uses, follow(residency, uses), strict=True):
        assert now == residency.parts(use)
        needed = {
            Use.SYNC: {Part.ENGINE_WEIGHTS, Part.MODEL},
            Use.ROLLOUT: {Part.ENGINE_WEIGHTS, Part.ENGINE_CACHE},
            Use.TRAIN: {Part.MODEL, Part.OPTIMIZER},
        }[use]
        assert needed <= now


@given(residencies, st.sampled_from(list(Use)), st.sampled_from(list(Use)))
def test_out_before_in(residency: Residency, first: Use, second: Use) -> None:
    moves = residency.moves(residency.parts(first), second)
    assert sorted(moves, key=lambda move: move.enters) == moves
    left = {move.part for move in moves if not move.enters} & ENGINE
    assert not left or left == residency.parts(first) & ENGINE, "the engine sleeps as a whole"
    assert residency.moves(residency.parts(second), second) == []


def test_all_resident_never_moves() -> None:
    for use in Use:
        assert Residency().parts(use) == frozenset(Part)


@pytest.mark.parametrize("level", [1, 2])
def test_the_full_turn_of_a_sleeping_engine(level: int) -> None:
    residency = Residency(sleep_level=level, offload_model=True, offload_optimizer=True)
    now = residency.parts(Use.ROLLOUT)
    assert residency.moves(now, Use.TRAIN) == [
        Move(Part.ENGINE_WEIGHTS, enters=False),
        Move(Part.ENGINE_CACHE, enters=False),
        Move(Part.MODEL, enters=True),
        Move(Part.OPTIMIZER, enters=True),
    ]
    now = residency.parts(Use.TRAIN)
    assert residency.moves(now, Use.SYNC) == [
        Move(Part.OPTIMIZER, enters=False),
        Move(Part.ENGINE_WEIGHTS, enters=True),
    ]
    assert residency.moves(residency.parts(Use.SYNC), Use.ROLLOUT) == [
        Move(Part.MODEL, enters=False),
        Move(Part.ENGINE_CACHE, enters=True),
    ]


@pytest.mark.parametrize("level", [1, 2])
def test_weights_reach_an_engine_that_has_just_started(level: int) -> None:
    """Its cache must leave for the training model, and to do so the whole engine sleeps: its weights wake again."""
    residency = Residency(sleep_level=level, offload_model=True)
    assert residency.moves(residency.parts(Use.ROLLOUT), Use.SYNC) == [
        Move(Part.ENGINE_WEIGHTS, enters=False),
        Move(Part.ENGINE_CACHE, enters=False),
        Move(Part.ENGINE_WEIGHTS, enters=True),
        Move(Part.MODEL, enters=True),
    ]
