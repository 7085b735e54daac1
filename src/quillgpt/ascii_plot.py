"""Line plots in characters: curves of braille dots, shaded bands, marks. Letters where a terminal has only ASCII.

plot = AsciiPlot(width=60, height=5, x_limits=(0, 100), y_limits=(2, 4))
plot.curve(steps, losses, style="cyan")
console.print(*plot.lines("steps"), sep=chr(10))
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from rich.text import Text

MARGIN = 8  # columns left of the frame: a number of the y axis and the axis
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # bits of a braille cell, 4 rows of 2
BRAILLE = 0x2800
MARK, SHADE, RULE, AXIS = "●", "░", "┄", "│"
ASCII_SHADE, ASCII_RULE, ASCII_AXIS = ":", "-", "|"


class AsciiPlot:
    """A frame of `width` x `height` characters. What is drawn later covers what was drawn earlier.

    Both limits of y must be positive if `is_logarithmic`. `is_ascii` draws curves as letters instead of dots.
    """

    def __init__(
        self,
        *,
        width: int,
        height: int,
        x_limits: tuple[float, float],
        y_limits: tuple[float, float],
        is_logarithmic: bool = False,
        is_ascii: bool = False,
    ) -> None:
        self.x_limits, self.y_limits = _not_empty(x_limits), _not_empty(y_limits)
        self.is_logarithmic, self.is_ascii = is_logarithmic, is_ascii
        self._dots = np.zeros((height, width), dtype=int)
        self._characters = np.full((height, width), " ", dtype=object)
        self._styles = np.full((height, width), "", dtype=object)

    def curve(self, x: np.ndarray, y: np.ndarray, *, style: str = "", letter: str = "a") -> None:
        """Draw y over increasing x, (n,) each, in every column that x reaches; steep parts are filled."""
        height, width = self._dots.shape
        places = np.linspace(*self.x_limits, 2 * width)
        half = (places[1] - places[0]) / 2
        columns = np.flatnonzero((places >= x.min() - half) & (places <= x.max() + half))
        rows = self._dot_rows(np.interp(places[columns], x, y))
        before = np.concatenate([rows[:1], rows[:-1]])
        top, bottom = np.where(before < rows, before + 1, rows), np.where(before > rows, before - 1, rows)
        down = np.arange(4 * height)[:, None]
        is_set = np.zeros((4 * height, 2 * width), dtype=int)
        is_set[:, columns] = (down >= top) & (down <= bottom)
        dots = np.einsum("irjc,rc->ij", is_set.reshape(height, 4, width, 2), DOTS)
        self._dots |= dots
        for place in zip(*np.nonzero(dots), strict=True):
            self._characters[place] = letter if self.is_ascii else chr(BRAILLE + self._dots[place])
            self._styles[place] = style

    def points(self, x: np.ndarray, y: np.ndarray, *, style: str = "", letter: str = "a") -> None:
        """Draw a mark at each point inside the frame; x and y: (n,)."""
        height, width = self._dots.shape
        low, high = self.x_limits
        columns = np.minimum(width - 1, ((x - low) / (high - low) * width).astype(int))
        rows = self._dot_rows(y)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if 0 <= row < 4 * height and column >= 0:
                self._characters[row // 4, column] = letter.upper() if self.is_ascii else MARK
                self._styles[row // 4, column] = style

    def band(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, *, style: str = "dim") -> None:
        """Shade the cells between two curves, (n,) each."""
        height, width = self._dots.shape
        places = np.linspace(*self.x_limits, width)
        half = (places[1] - places[0]) / 2
        columns = np.flatnonzero((places >= x.min() - half) & (places <= x.max() + half))
        top, bottom = (self._dot_rows(np.interp(places[columns], x, edge)) // 4 for edge in (high, low))
        down = np.arange(height)[:, None]
        inside = np.zeros((height, width), dtype=bool)
        inside[:, columns] = (down >= top) & (down <= bottom)
        self._characters[inside] = ASCII_SHADE if self.is_ascii else SHADE
        self._styles[inside] = style

    def level(self, value: float, label: str) -> None:
        """Draw a horizontal rule with its label at the right end, if it is inside the frame."""
        height, width = self._dots.shape
        row = int(self._dot_rows(np.array([value]))[0])
        if 0 <= row < 4 * height:
            rule = ASCII_RULE if self.is_ascii else RULE
            self._characters[row // 4] = list(f" {label}"[:width].rjust(width, rule))
            self._styles[row // 4] = "dim"

    def lines(self, x_label: str = "") -> list[Text]:
        """The rows of the frame with the limits of y; with an `x_label`, a row with the limits of x below them."""
        height, width = self._dots.shape
        low, high = (_fitting_tick(limit) for limit in self.y_limits)
        found = []
        for row in range(height):
            name = {0: high, height - 1: low}.get(row, "")
            text = Text(no_wrap=True, overflow="crop")
            text.append(name.rjust(MARGIN - 1) + (ASCII_AXIS if self.is_ascii else AXIS), style="dim")
            cells = zip(self._characters[row], self._styles[row], strict=True)
            for style, group in itertools.groupby(cells, key=lambda cell: cell[1]):
                text.append("".join(character for character, _ in group), style=style)
            found.append(text)
        if x_label:
            left, right = f"{tick(self.x_limits[0])} {x_label}", tick(self.x_limits[1])
            ends = " " * MARGIN + left + right.rjust(max(0, width - len(left)))
            found.append(Text(ends, style="dim", no_wrap=True, overflow="crop"))
        return found

    def _dot_rows(self, y: np.ndarray) -> np.ndarray:
        """The rows of dots, from above, of heights; beyond the frame, but not far, for what is outside."""
        low, high = self.y_limits
        if self.is_logarithmic:
            low, high, y = np.log(low), np.log(high), np.log(np.maximum(y, low / 10))
        shares = np.clip((y - low) / (high - low), -1.0, 2.0)
        return np.rint((1 - shares) * (4 * len(self._dots) - 1)).astype(int)


def plot_values(values: Sequence[float], *, width: int, height: int, is_ascii: bool = False) -> list[str]:
    """Lines of a plot of the finite values, oldest left; each column is the mean of its share if there are many."""
    finite = np.array(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return []
    columns = min(2 * width, len(finite))
    starts = len(finite) * np.arange(columns) // columns
    means = np.add.reduceat(finite, starts) / np.diff(starts, append=len(finite))
    limits = float(means.min()), float(means.max())
    plot = AsciiPlot(width=width, height=height, x_limits=(0, 2 * width - 1), y_limits=limits, is_ascii=is_ascii)
    plot.curve(np.arange(float(columns)), means)
    return [line.plain.rstrip() for line in plot.lines()]


def tick(value: float) -> str:
    """A number for an axis: 200000 as 200k, 0.0003 as 3e-4."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else ""
    for large, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if large <= abs(value) < 1e15:
            return f"{value / large:.4g}{letter}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _fitting_tick(value: float) -> str:
    """A tick with as many of 3 digits as fit into the margin."""
    ticks = [tick(float(f"{value:.{digits}g}")) for digits in (3, 2, 1)]
    return next((text for text in ticks if len(text) < MARGIN), "")


def _not_empty(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    return (low, high) if high > low else (low, low + 1)
