"""What a profile says of the GPU, from events whose sums are known."""

from __future__ import annotations

import pytest

from tools.bench.profile_rank import busy


def event(start: float, length: float, name: str = "a", category: str = "kernel") -> dict[str, object]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length}


def test_busy_time_counts_overlap_once_and_gaps_by_length() -> None:
    events = [
        event(5000, 100, "late"),
        event(0, 100),
        event(50, 100),  # on another stream, half of it beside the first
        event(60, 10),  # within both
        event(160, 40, category="gpu_memcpy"),
        event(0, 9000, category="cpu_op"),
        {"ph": "i", "cat": "kernel", "name": "mark", "ts": 300},
    ]
    found = busy(events)
    assert found["span"] == pytest.approx(5100e-6)
    assert found["busy"] == pytest.approx((150 + 40 + 100) * 1e-6)
    assert found["short_gaps"] == pytest.approx(10e-6) and found["long_gaps"] == pytest.approx(4800e-6)
    assert found["kernels"] == 5
    assert [name for name, _, _ in found["longest"]] == ["a", "late"]
    assert found["longest"][0][1:] == (pytest.approx(250e-6), 4)
