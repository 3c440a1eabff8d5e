"""Colours of the pages can be read by everybody: contrasts of the Web Content Accessibility Guidelines 2.2."""

from __future__ import annotations

import math
import re
from itertools import combinations

import pytest

from grpo_hpc.html_page import COLOURS, STYLE, ink_on

LIGHT, DARK = STYLE.split("@media (prefers-color-scheme:dark)")
TEXT, GRAPHICS = 4.5, 3.0  # least contrasts, success criteria 1.4.3 and 1.4.11


def colours(style: str) -> dict[str, str]:
    """By name; three digits stand for six."""
    found = dict(re.findall(r"--(\w+):#([0-9a-f]{6}|[0-9a-f]{3})\b", style))
    return {name: value if len(value) == 6 else "".join(2 * sign for sign in value) for name, value in found.items()}


def linear(colour: str) -> list[float]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "dim", "accent", "good", "warn", "bad"])
def test_text_is_seen(style: str, name: str) -> None:
    found = colours(style)
    for ground in ("paper", "raised"):
        assert contrast(found[name], found[ground]) >= TEXT, ground
    assert contrast(found["ink"], found["mark"]) >= TEXT


@pytest.mark.parametrize("style", [LIGHT, DARK], ids=["light", "dark"])
def test_curves_are_seen(style: str) -> None:
    for colour in COLOURS:
        assert contrast(colour[1:], colours(style)["paper"]) >= GRAPHICS, colour


def seen_without(cone: int, colour: str) -> tuple[float, float, float]:
    """L*, a*, b* of a colour as seen without the long (0) or the middle (1) cones, or with all (2).

    Vienot, Brettel and Mollon, Digital video colourmaps for checking the legibility of displays by dichromats, 1999.
    """
    red, green, blue = linear(colour)
    if cone < 2:
        share, odd = ((0.11238, 0.00401), (0.29275, -0.02234))[cone]
        blue += odd * (red - green)
        red = green = share * red + (1 - share) * green
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.0888
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("cone", [0, 1, 2], ids=["protanopia", "deuteranopia", "all cones"])
def test_curves_are_told_apart(cone: int) -> None:
    near = {pair: math.dist(*(seen_without(cone, colour[1:]) for colour in pair)) for pair in combinations(COLOURS, 2)}
    assert min(near.values()) > 10, min(near, key=near.__getitem__)


@pytest.mark.parametrize("colour", [*COLOURS, "#444444"])
def test_text_on_a_colour_is_seen(colour: str) -> None:
    ink = {"black": "000000", "white": "ffffff"}[ink_on(colour)]
    assert contrast(ink, colour[1:]) >= TEXT
