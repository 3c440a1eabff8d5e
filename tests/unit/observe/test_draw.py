"""Small pictures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.observe.draw import axis_limits, curve, duration, round_ceiling, shares, sparkline

FINITE = st.floats(-1e9, 1e9)


def test_sparkline():
    assert sparkline([0, 1, 2, 7], 10) == "▁▂▃█"
    assert sparkline([1, None, 2], 10) == "▁ █"
    assert sparkline([0, 0, 8, 8], 2) == "▁█"
    assert sparkline([5, 5], 10) == "▁▁"
    assert sparkline([0.1 + 0.2, 0.3], 10) == "▁▁"
    assert sparkline([None], 10) == sparkline([], 10) == sparkline([1, 2], 0) == ""


def test_curve_rises_from_the_lower_left_to_the_upper_right():
    lines = curve({step: float(step) for step in range(1, 9)}, 8, width=4, height=2, limits=(0.0, 8.0))
    assert lines == [" ⢀⡠⠊", "⠔⠁  "]


def test_curve_leaves_the_future_empty():
    lines = curve({1: 1.0, 2: 1.0}, 20, width=10, height=3, limits=(0.0, 1.0))
    assert all(line[1:].strip() == "" for line in lines) and lines[0][0] != " "


@given(st.dictionaries(st.integers(1, 300), st.none() | FINITE), st.integers(1, 60), st.integers(1, 8))
def test_curve_always_fits_its_frame(points, width, height):
    known = [value for value in points.values() if value is not None]
    lines = curve(points, 300, width, height, axis_limits(known))
    assert [len(line) for line in lines] == [width] * height
    assert any(line.strip() for line in lines) == bool(known)


@given(st.lists(FINITE))
def test_axis_limits_hold_all_values(values):
    low, high = axis_limits(values)
    assert low < high and low <= 0 <= high
    assert all(low - 1e-6 * abs(low) <= value <= high + 1e-6 * abs(high) for value in values)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.3, 0.5), (0.5, 0.5), (1.0, 1.0), (1.1, 2.0), (2.2, 2.5), (70, 100), (5e-324, 1e-300)]
)
def test_round_ceiling(value, expected):
    assert round_ceiling(value) == pytest.approx(expected, rel=1e-6, abs=0.0)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(0, 200))
def test_shares_fill_the_width(parts, width):
    cells = shares(parts, width)
    assert sum(cells) == (width if sum(parts) > 0 else 0) and min(cells) >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (9.96, "10 s"),
        (59.6, "1 m 00 s"),
        (65, "1 m 05 s"),
        (7800, "2 h 10 m"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
        (-1, "0.0 s"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
