"""Small pictures made of characters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

_EIGHTHS = " ▁▂▃▄▅▆▇█"

Value = float | None


def sparkline(values: Sequence[Value], width: int) -> str:
    """``values`` as one line of at most ``width`` bars from their least to their greatest; gaps where not finite."""
    columns = _resampled(values, width)
    known = [value for value in columns if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = high - low
    return "".join(
        " " if value is None else _EIGHTHS[1 + round(7 * (value - low) / span) if span else 1] for value in columns
    )


def area_chart(points: Mapping[int, Value], steps: int, width: int, height: int, top: float) -> list[str]:
    """A filled curve of ``points`` (value by step) over all ``steps`` of a run, drawn from 0 to ``top``.

    Returns:
        ``height`` lines, the highest first; the part of the run that is still to come stays empty.
    """
    buckets: list[list[float]] = [[] for _ in range(width)]
    for column in range(width):
        first, last = column * steps // width + 1, max(1, math.ceil((column + 1) * steps / width))
        buckets[column] = [v for step in range(first, last + 1) if (v := points.get(step)) is not None]
    eighths = [round(8 * height * min(1.0, max(0.0, fmean(b) / top))) if b else 0 for b in buckets]
    lines = []
    for row in reversed(range(height)):
        lines.append("".join(_EIGHTHS[min(8, max(0, level - 8 * row))] for level in eighths))
    base = lines[-1]
    lines[-1] = "".join("▁" if bucket and mark == " " else mark for bucket, mark in zip(buckets, base, strict=True))
    return lines


def round_ceiling(value: float) -> float:
    """The least of 1, 2, 2.5 or 5 times a power of ten that is not below ``value``; 1 for values up to 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value * (1 - 1e-9))


def shares(parts: Sequence[float], width: int) -> list[int]:
    """Whole numbers of cells proportional to ``parts`` that add up to ``width``."""
    total = sum(parts)
    if total <= 0:
        return [0] * len(parts)
    edges = [round(width * sum(parts[: index + 1]) / total) for index in range(len(parts))]
    return [edge - before for before, edge in zip([0, *edges], edges, strict=False)]


def duration(seconds: float) -> str:
    """Seconds as people say them: ``3.2 s``, ``42 s``, ``4 m 05 s``, ``2 h 10 m``, ``3 d 04 h``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for size, large, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part:02d} {small}"
    return f"{whole} s"


def _resampled(values: Sequence[Value], width: int) -> list[Value]:
    """``values`` averaged down to at most ``width`` of them."""
    if len(values) <= width:
        return list(values)
    edges = [column * len(values) // width for column in range(width + 1)]
    parts = [[v for v in values[a:b] if v is not None] for a, b in zip(edges, edges[1:], strict=False)]
    return [fmean(part) if part else None for part in parts]
