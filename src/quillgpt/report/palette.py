"""Colours that people with any colour vision can tell apart, on white paper and on a dark screen.

The hues are those of Okabe and Ito's palette, darkened for a light ground and lightened for a dark one until each has
a contrast of at least 3 to it. Because hue alone is never enough, each run also has a marker, and from the eighth on,
where the colours begin again, another dash.
"""

from typing import Literal

LIGHT = {
    "ground": "#ffffff",
    "raised": "#f6f7f8",
    "text": "#1b1f24",
    "muted": "#5b636d",
    "line": "#d8dce1",
    "accent": "#00588a",
}
DARK = {
    "ground": "#14171b",
    "raised": "#1d2127",
    "text": "#e6e9ed",
    "muted": "#a0a8b2",
    "line": "#363c45",
    "accent": "#7cc0ee",
}
# blue, vermilion, bluish green, reddish purple, orange, black or white, sky blue
RUNS_ON_LIGHT = ("#0072b2", "#d55e00", "#008a66", "#b85a92", "#a87a00", "#2b2f36", "#3d95cc")
RUNS_ON_DARK = ("#4d9fe0", "#f0803c", "#2ec79b", "#e39bc6", "#f0bb3a", "#f2f4f6", "#a5dcff")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Dash = Literal["solid", "dashed", "dashdot", "dotted"]
DASHES: tuple[Dash, ...] = ("solid", "dashed", "dashdot", "dotted")


def colour_number(run: int) -> int:
    """Which of the colours a run has."""
    return run % len(RUNS_ON_LIGHT)


def dash(run: int) -> Dash:
    """How its lines are broken."""
    return DASHES[run // len(RUNS_ON_LIGHT) % len(DASHES)]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    shares = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
