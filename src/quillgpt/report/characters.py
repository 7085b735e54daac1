"""A `Plot` in characters, several runs over each other: dots of braille, or letters where there is only ASCII."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from quillgpt.report.palette import colour_number
from quillgpt.report.plot import Kind, Line, Plot
from quillgpt.report.wording import compact

# readable on black and on white; rich takes the nearest where a terminal has few colours
COLOURS = ("#3a8fd0", "#e0702c", "#1fa67f", "#c875a8", "#b98a17", "default", "#4fb3e6")
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a cell: 4 rows of 2
BRAILLE = 0x2800
LETTERS = "abcdefghijklmnopqrstuvwxyzAB"
BAND = 1_000  # beyond all runs
MARK = 256  # beyond all dots
MARGIN = 7  # for the numbers of the y axis


def style_of(run: int) -> str:
    """The colour of a run in a terminal; what belongs to no run is dim."""
    return "dim" if run == BAND else COLOURS[colour_number(run)]


@dataclass(frozen=True)
class Drawing:
    """A plot of so many lines; as wide as it is given room."""

    plot: Plot
    height: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Title, curves with the ends of both axes, caption."""
        width = max(10, options.max_width - MARGIN - 1)
        yield Text(self.plot.title, style="bold", no_wrap=True, overflow="crop")
        yield from self._rows(width, is_plain=options.ascii_only)
        x_low, x_high = _x_range(self.plot)
        name, right = self.plot.x_label, compact(x_high)
        left = f"{compact(x_low)} {name}"
        yield Text(
            " " * (MARGIN + 1) + left + right.rjust(max(0, width - len(left))),
            style="dim",
            no_wrap=True,
            overflow="crop",
        )
        if self.plot.caption:
            yield Text(self.plot.caption, style="dim italic")

    def _rows(self, width: int, *, is_plain: bool) -> Iterator[Text]:
        grid = Grid(width, self.height)
        low, high = self.plot.limits
        for area in self.plot.areas:
            for edge in (area.low, area.high) if area.run < 0 else ():
                grid.draw(*_in_frame(self.plot, area.x, edge, width), run=BAND)
        has_curves = any(line.kind is Kind.STRONG for line in self.plot.lines)
        for line in self.plot.lines:
            if line.kind is Kind.POINTS and has_curves:
                if self.plot.is_main:  # a small one has no room for them
                    grid.mark(*_points(self.plot, line), run=line.run)
            elif line.kind is not Kind.FAINT:
                grid.draw(*_in_frame(self.plot, line.x, line.y, width), run=line.run)
        names = {grid.row_of(share): label for share, label in _levels(self.plot)}
        ends = {0: compact(_rounded(high)), self.height - 1: compact(_rounded(low))}
        rule = "-" if is_plain else "┄"
        for row in range(self.height):
            text = Text(
                ends.get(row, "").rjust(MARGIN) + ("|" if is_plain else "│"), style="dim", no_wrap=True, overflow="crop"
            )
            label = f" {names[row]}"[:width] if row in names else ""
            for column in range(width):
                run = int(grid.runs[row, column])
                place = column - (width - len(label))
                if run >= 0:
                    text.append(grid.character(row, column, is_plain=is_plain), style=style_of(run))
                elif label:
                    text.append(label[place] if place >= 0 else rule, style="dim")
                else:
                    text.append(" ")
            yield text


class Grid:
    """Cells of 2 by 4 dots: which dots are set (`MARK`: one mark instead), and by which run (-1: by none)."""

    def __init__(self, width: int, height: int) -> None:
        self.dots = np.zeros((height, width), dtype=int)
        self.runs = np.full((height, width), -1)

    def row_of(self, share: float) -> int:
        """The row of cells at a share of the height, from below."""
        return min(len(self.dots) - 1, max(0, round((1 - share) * (4 * len(self.dots) - 1)) // 4))

    def character(self, row: int, column: int, *, is_plain: bool) -> str:
        """What stands in a cell that a run has."""
        dots, run = int(self.dots[row, column]), int(self.runs[row, column])
        letter = "." if run == BAND else LETTERS[run % len(LETTERS)]
        if is_plain:
            return letter.upper() if dots == MARK else letter
        return "●" if dots == MARK else chr(BRAILLE + dots)

    def mark(self, across: np.ndarray, shares: np.ndarray, *, run: int) -> None:
        """Set marks at shares of the width and of the height; those outside are left out."""
        for x, share in zip(across.tolist(), shares.tolist(), strict=True):
            if 0 <= share <= 1:
                place = self.row_of(share), min(self.runs.shape[1] - 1, int(x * self.runs.shape[1]))
                self.dots[place], self.runs[place] = MARK, run

    def draw(self, columns: np.ndarray, shares: np.ndarray, *, run: int) -> None:
        """Set the dots of a curve, gaps upright filled; `columns` are dots from the left, `shares` of the height."""
        rows = np.rint((1 - shares) * (4 * len(self.dots) - 1)).astype(int)
        before = rows[0] if len(rows) else 0
        for column, row in zip(columns.tolist(), rows.tolist(), strict=True):
            step = 1 if row >= before else -1
            for dot in range(before + step if row != before else row, row + step, step):
                if 0 <= dot < 4 * len(self.dots) and self.dots[dot // 4, column // 2] != MARK:
                    self.dots[dot // 4, column // 2] |= DOTS[dot % 4][column % 2]
                    self.runs[dot // 4, column // 2] = run
            before = row


def _in_frame(plot: Plot, x: np.ndarray, y: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A curve at every dot of the x axis that it reaches: the dots, and the heights as shares of the frame."""
    x_low, x_high = _x_range(plot)
    places = np.linspace(x_low, x_high, 2 * width)
    half = (x_high - x_low) / (4 * width)
    reached = (places >= x.min() - half) & (places <= x.max() + half)
    return np.flatnonzero(reached), _shares(plot, np.interp(places[reached], x, y))


def _points(plot: Plot, line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Points as shares of the width and of the height."""
    x_low, x_high = _x_range(plot)
    return (line.x - x_low) / (x_high - x_low), _shares(plot, line.y)


def _shares(plot: Plot, y: np.ndarray) -> np.ndarray:
    """Heights as shares of the frame, a little beyond it where they are outside."""
    low, high = plot.limits
    if plot.is_logarithmic:
        low, high, y = np.log(low), np.log(high), np.log(np.maximum(y, low / 10))
    return np.clip((y - low) / (high - low), -1.0, 2.0)


def _levels(plot: Plot) -> Iterator[tuple[float, str]]:
    for level in plot.levels:
        share = float(_shares(plot, np.array([level.value]))[0])
        if 0 <= share <= 1:
            yield share, level.label


def _x_range(plot: Plot) -> tuple[float, float]:
    far = max((float(line.x.max()) for line in plot.lines), default=1.0)
    return (0.0, far) if far > 0 else (0.0, 1.0)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
