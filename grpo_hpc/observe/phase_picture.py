"""Where the time of every step went, as a picture for reporters that show pictures."""

from __future__ import annotations

import numpy as np

from grpo_hpc.html_page import COLOURS
from grpo_hpc.observe.history import History
from grpo_hpc.observe.state import STEP_PHASES

_COLOUR_OF = {"rollout": 0, "train": 1, "logprob": 2, "sync": 3, "reward": 4, "offload": 5}
_HIGH, _MOST_COLUMNS, _WIDE = 200, 200, 4  # pixels, columns, pixels of a column
CAPTION = "Seconds of each step by phase, the first step on the left: " + ", ".join(
    f"{phase} {colour}"
    for phase, colour in {
        "rollout": "blue",
        "train": "orange",
        "logprob": "green",
        "sync": "purple",
        "reward": "violet",
        "offload": "light blue",
        "the rest": "grey",
    }.items()
)


def phase_picture(history: History) -> np.ndarray | None:
    """A column for each step, its phases above each other; uint8 [height, width, 3], None before the first step.

    Neighbouring steps share a column where there are many.
    """
    whole = np.array([value or 0.0 for value in history.series("time/step").values()])
    if not whole.any():
        return None
    steps = list(history.series("time/step"))
    phases = [phase for phase in STEP_PHASES if history.series(f"time/{phase}")]
    seconds = np.array([[history.series(f"time/{phase}").get(step) or 0.0 for step in steps] for phase in phases])
    rest = np.maximum(0.0, whole - seconds.sum(0)) if phases else whole
    stacked = _averaged(np.vstack([*seconds, rest])).cumsum(0)
    return _drawn(stacked / stacked[-1].max(), [_colour(_COLOUR_OF.get(phase, 6)) for phase in phases] + [_colour(7)])


def _averaged(rows: np.ndarray) -> np.ndarray:
    parts = np.array_split(rows, min(_MOST_COLUMNS, rows.shape[1]), axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def _drawn(shares: np.ndarray, colours: list[tuple[int, ...]]) -> np.ndarray:
    """``shares`` [phases, columns] of the height at which each phase ends, from the bottom."""
    pixels = np.full((_HIGH, shares.shape[1], 3), 255, np.uint8)
    heights = np.arange(_HIGH, 0, -1)[:, None] - 0.5
    for ends, colour in zip(shares[::-1] * _HIGH, colours[::-1], strict=True):
        pixels[heights < ends] = colour
    return pixels.repeat(_WIDE, axis=1)


def _colour(number: int) -> tuple[int, ...]:
    return tuple(bytes.fromhex(COLOURS[number].removeprefix("#")))
