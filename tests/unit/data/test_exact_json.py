"""Values of data rows come back as they were, types and all."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_hpc.data.exact_json import from_json, to_json

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("$python"), inner),
)


@given(PLAIN)
def test_what_json_can_hold(value):
    back = from_json(to_json(value))
    assert back == value and repr(back) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
        datetime(2026, 2, 3),
        date(2026, 2, 3),
        time(1, 2, 3, 4),
        timedelta(days=-1, seconds=2, microseconds=3),
        Decimal("1.20"),
        b"\x00\xff",
        (1, ("a", None)),
        {1: "a", (2, 3): [b""]},
        {"$python": ["decimal", "1"]},
        {"$python": ["items", []], "x": (1,)},
        [-0.0, 10**400, -math.inf, True, 1, 1.0],
    ],
)
def test_what_parquet_knows_beside(value):
    back = from_json(to_json([value]))[0]
    assert back == value and repr(back) == repr(value) and type(back) is type(value)
    json.loads(to_json(value))  # it is JSON


def test_not_a_number_stays_one():
    assert math.isnan(from_json(to_json({"a": math.nan}))["a"])


def test_what_cannot_be_kept_is_named():
    with pytest.raises(TypeError, match="the type complex"):
        to_json({"a": [1j]})
