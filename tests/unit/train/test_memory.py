"""Peaks by phase, with a device that says what a CUDA device would: an H200 is not in these tests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from grpo_hpc.train.memory_meter import GIB, MemoryMeter


@dataclass
class Device:
    """Counts as torch does: what sleeps stays reserved, but is not used."""

    is_cuda: bool = True
    reserved: float = 0
    peak: float = 0
    asleep: float = 0
    outside: float = 2

    def hold(self, gib: float) -> None:
        self.reserved = gib
        self.peak = max(self.peak, gib)

    def peak_bytes(self) -> int:
        return int(self.peak * GIB)

    def forget_peak(self) -> None:
        self.peak = self.reserved

    def bytes_outside_torch(self) -> int:
        return int((self.outside - self.asleep) * GIB)


def test_peaks_of_phases_with_an_engine_that_sleeps():
    device = Device()
    meter = MemoryMeter(device)
    device.hold(60), device.hold(50)  # model and engine
    meter.note("start")
    device.hold(52), device.hold(50)
    meter.note("rollout")
    device.asleep = 40
    meter.note("offload")
    device.hold(90), device.hold(55)
    meter.note("train")
    device.outside = 3
    device.hold(95), device.hold(50)
    meter.note("train")
    device.asleep = 0
    meter.note("offload")
    device.hold(51)
    meter.note("rollout")
    want = {"": 62, "/start": 62, "/rollout": 54, "/train": 95 - 40 + 3}
    assert meter.metrics() == {f"memory/peak_gib{name}": pytest.approx(gib) for name, gib in want.items()}


def test_on_a_cpu_there_is_one_peak_only():
    device = Device(is_cuda=False, outside=0)
    meter = MemoryMeter(device)
    device.hold(3)
    meter.note("rollout")
    assert meter.metrics() == {"memory/peak_gib": pytest.approx(3)}
