"""How much memory each phase has taken."""

from __future__ import annotations

from grpo_hpc.train.megatron.platform import Platform

GIB = 2**30


class MemoryMeter:
    """Peaks of one process's device, by phase, with everything that it holds outside torch.

    torch counts the memory of a sleeping engine as reserved, though it is unmapped; the device does not. The difference
    between the two, taken at the end of a phase, is right for the whole phase as long as the engine neither fell asleep
    nor woke up in it: it does so in ``offload`` alone, which is therefore left out.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._peaks: dict[str, int] = {}

    def note(self, phase: str) -> None:
        """``phase`` has ended; count its peak, and begin anew."""
        p = self._platform
        if phase != "offload":
            self._peaks[phase] = max(self._peaks.get(phase, 0), p.peak_bytes() + p.bytes_outside_torch())
        p.forget_peak()

    def metrics(self) -> dict[str, float]:
        """Most memory so far in GiB: over all phases, and in each."""
        whole = {"memory/peak_gib": max(self._peaks.values()) / GIB}
        if not self._platform.is_cuda:  # whose peak cannot be forgotten
            return whole
        return whole | {f"memory/peak_gib/{phase}": peak / GIB for phase, peak in self._peaks.items()}
