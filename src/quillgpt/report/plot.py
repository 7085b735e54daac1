"""What a figure shows, before anyone draws it: lines, levels, a band, marks; and what it says in words.

A page, a file for a paper and a terminal draw the same `Plot`.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from quillgpt.report.wording import listed


class Kind(Enum):
    """How a line is drawn."""

    FAINT = "faint"
    STRONG = "strong"
    POINTS = "points"  # joined by a thin line, with error bars where there are errors
    LAYER = "layer"  # one of many, thin


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of one run: `x`, `y` and, if not empty, `error` are (n,) float64; `run` is the number of its colour.

    `covers` says how many lines of the figure lie exactly below this one; it is broken so that they can be seen.
    """

    run: int
    label: str
    kind: Kind
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray = field(default_factory=lambda: np.zeros(0))
    covers: int = 0


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line with its name: a published score, a limit."""

    value: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Area:
    """A band between two curves, (n,) float64 each: the range of a run's single lines, or what runs are judged by.

    `middle`, if not empty, is a curve within. `run` is -1 for what belongs to no run.
    """

    run: int
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    middle: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Places on the x axis where something happened to a run."""

    run: int
    label: str
    x: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure. `limits` are of the y axis; `caption` says in words, with numbers, what is to be seen."""

    key: str
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    caption: str
    limits: tuple[float, float]
    levels: list[Level] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    marks: list[Marks] = field(default_factory=list)
    is_logarithmic: bool = False
    is_main: bool = False

    @property
    def points(self) -> int:
        """How many points it takes to draw all of it."""
        return sum(len(part.x) for part in [*self.lines, *self.areas, *self.marks])

    @property
    def alternative(self) -> str:
        """What it is, for one who cannot see it; the caption beside it has the numbers."""
        runs = list(dict.fromkeys(line.label for line in self.lines if line.kind is not Kind.LAYER))
        lines = f" of {listed(runs)}" if 0 < len(runs) <= 4 else f", {len(self.lines)} lines"
        return f"{self.title}: line chart of {self.y_label} against {self.x_label}{lines}"


def limits_around(values: np.ndarray, *, include: tuple[float, ...] = (), is_logarithmic: bool = False) -> tuple:
    """Limits with some air around the finite values; never of no height."""
    finite = np.concatenate([values[np.isfinite(values)], np.array(include, dtype=np.float64)])
    if is_logarithmic:
        finite = finite[finite > 0]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if is_logarithmic:
        return (low / 1.25, high * 1.25)
    air = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return (low - air, high + air)
