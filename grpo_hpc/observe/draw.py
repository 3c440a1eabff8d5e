"""Small pictures made of characters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

_BARS = "▁▂▃▄▅▆▇█"
_TINY = 1e-300  # below this, powers of ten are no longer exact floats, and no curve is worth an axis
_BRAILLE = 0x2800
_BRAILLE_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))  # left and right column, from the bottom

Value = float | None


def sparkline(values: Sequence[Value], width: int) -> str:
    """``values`` as one line of at most ``width`` bars from their least to their greatest; gaps where not finite."""
    columns = _resampled(values, width)
    known = [value for value in columns if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = high - low if high - low > 1e-9 * max(abs(low), abs(high)) else 0.0
    return "".join(" " if value is None else _BARS[round(7 * (value - low) / span) if span else 0] for value in columns)


def curve(points: Mapping[int, Value], steps: int, width: int, height: int, limits: tuple[float, float]) -> list[str]:
    """A curve of ``points`` (value by step, steps from 1) over all ``steps`` of a run, in braille dots.

    Every character is 2 dots wide and 4 high. Steps that share a column of dots are averaged.

    Args:
        width, height: in characters.
        limits: values of the lowest and the highest dots.

    Returns:
        ``height`` lines, the highest first; the part of the run that is still to come stays empty.
    """
    columns: dict[int, list[float]] = {}
    for step, value in points.items():
        if value is not None:
            columns.setdefault(min(2 * width - 1, int((step - 0.5) * 2 * width / steps)), []).append(value)
    low, high = limits
    course = [(x, min(1.0, max(0.0, (fmean(columns[x]) - low) / (high - low)))) for x in sorted(columns)]
    cells = [[0] * width for _ in range(height)]
    for x, bottom, top in _strokes([(x, round(share * (4 * height - 1))) for x, share in course]):
        for y in range(bottom, top + 1):
            cells[height - 1 - y // 4][x // 2] |= _BRAILLE_DOTS[x % 2][y % 4]
    return ["".join(chr(_BRAILLE + cell) if cell else " " for cell in row) for row in cells]


def _strokes(dots: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Vertical strokes (x, lowest y, highest y) that join neighbouring ``dots`` to one line."""
    if dots:
        yield dots[0][0], dots[0][1], dots[0][1]
    for (x0, y0), (x1, y1) in pairwise(dots):
        before = y0
        for x in range(x0 + 1, x1 + 1):
            y = y0 + round((y1 - y0) * (x - x0) / (x1 - x0))
            joint = before + (y > before) - (y < before)  # start beside the last dot, not on its level
            yield x, min(joint, y), max(joint, y)
            before = y


def axis_limits(values: Sequence[float]) -> tuple[float, float]:
    """Round numbers with all ``values`` and 0 between them."""
    top = round_ceiling(max(values)) if values and max(values) > 0 else 0.0
    bottom = -round_ceiling(-min(values)) if values and min(values) < 0 else 0.0
    return (bottom, top) if bottom < top else (0.0, 1.0)


def round_ceiling(value: float) -> float:
    """The least of 1, 2, 2.5 or 5 times a power of ten that is not below ``value``, which must be positive."""
    value = max(value, _TINY)
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
    """``values`` averaged down to at most ``width`` of them; nothing where there is no room."""
    if width <= 0:
        return []
    if len(values) <= width:
        return list(values)
    edges = [column * len(values) // width for column in range(width + 1)]
    parts = [[v for v in values[a:b] if v is not None] for a, b in pairwise(edges)]
    return [fmean(part) if part else None for part in parts]
