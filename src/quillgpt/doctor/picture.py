"""A run in its band, drawn in characters."""

from collections.abc import Sequence

import numpy as np

from quillgpt.evaluate.bands import Band
from quillgpt.evaluate.bands.judging import Point

BAND, RUN = "░", "●"
LABEL = 6  # characters left of the picture


def picture(band: Band, points: Sequence[Point], *, width: int, height: int) -> list[str]:
    """Lines of at most `width` characters: loss upwards, steps to the right, the band shaded, a dot for each point."""
    columns = max(2, width - LABEL - 1)
    losses = [point.loss for point in points]
    top = min(max([float(band.high.max()), *losses]), 1.5 * float(band.high.max()))
    bottom = max(min([float(band.low.min()), *losses]), 0.0)
    span = (top - bottom) or 1.0
    cells = [[" "] * columns for _ in range(height)]

    def row_of(loss: float) -> int:
        return round((top - min(max(loss, bottom), top)) / span * (height - 1))

    places = np.linspace(band.tokens[0], band.tokens[-1], columns)
    lows, highs = np.interp(places, band.tokens, band.low), np.interp(places, band.tokens, band.high)
    for column in range(columns):
        for row in range(row_of(highs[column]), row_of(lows[column]) + 1):
            cells[row][column] = BAND
    first, last = band.tokens[0] / band.tokens_per_step, band.steps
    for point in points:
        cells[row_of(point.loss)][round((point.step - first) / max(1.0, last - first) * (columns - 1))] = RUN
    labels = {0: f"{top:.2f}", height - 1: f"{bottom:.2f}"}
    lines = [f"{labels.get(row, ''):>{LABEL}} {''.join(cells[row])}".rstrip() for row in range(height)]
    begin, end = f"step {first:,.0f}", f"{last:,}"
    return [*lines, f"{'':{LABEL}} {begin}{end:>{max(1, columns - len(begin))}}"]
