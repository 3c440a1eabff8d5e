"""What the plan of a run takes from another one that was measured: how long sequences were, and how fast each phase."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Lengths:
    """How long the sequences of a run were, in tokens.

    Attributes:
        prompt: mean of prompts; None where it is not known, and then the longest that the run file admits counts.
        completions: lengths in ascending order, each for an equal share of the completions.
    """

    prompt: int | None
    completions: tuple[float, ...]

    @property
    def average(self) -> int:
        """Of completions."""
        return max(1, round(fmean(self.completions)))

    def at_most(self, completion: int) -> Lengths:
        """As they are where completions end at ``completion`` tokens."""
        return replace(self, completions=tuple(min(length, completion) for length in self.completions))


@dataclass(frozen=True)
class Pace:
    """How fast a run was.

    Attributes:
        run: its name.
        factors: by phase, measured seconds for each one that had been planned for that run with its own lengths.
        reward: seconds of scoring for each completion that a rank gets in a rollout.
    """

    run: str
    lengths: Lengths
    factors: tuple[tuple[str, float], ...] = ()
    reward: float = 0.0

    def __str__(self) -> str:
        """What was taken, in one sentence."""
        c = self.lengths.completions
        prompts = "" if self.lengths.prompt is None else f", prompts of {self.lengths.prompt:,}"
        phases = "".join(f", {name} x{factor:.2f}" for name, factor in self.factors)
        return (
            f"Like the run {self.run}: completions of {self.lengths.average:,} tokens on average, {round(c[-1]):,} at "
            f"the most{prompts}; measured over planned{phases or ': nothing that could be compared'}; scoring "
            f"{self.reward * 1e3:.3g} ms for a completion of a rank"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        longest, shortest = self.lengths.completions[-1], self.lengths.completions[0]
        lengths = {"prompt": self.lengths.prompt, "shortest": shortest, "longest": longest}
        return {"run": self.run, **lengths, "factors": dict(self.factors), "reward": self.reward}

    def factor(self, phase: str) -> float:
        """What the seconds of a phase are multiplied by."""
        return dict(self.factors).get(phase, 1.0)
