"""Texts that must have a certain form, each with the sentence that says which."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def matching(pattern: str, says: str) -> AfterValidator:
    """A check that a text is ``pattern`` as a whole; ``says`` is what a person reads who wrote something else."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("form", says)
        return text

    return AfterValidator(check)


WallTime = Annotated[
    str,
    matching(
        r"(\d{1,3}-)?\d{1,4}(:[0-5]?\d){1,2}",
        "must be a wall time: 30:00 is minutes:seconds, 12:00:00 has hours, and 1-00:00:00 has days before them",
    ),
]


def wall_seconds(time: str) -> int:
    """Seconds of a :data:`WallTime`; behind days Slurm reads hours first."""
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [*parts, 0][:3] if days or len(parts) == 3 else [0, *parts]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
