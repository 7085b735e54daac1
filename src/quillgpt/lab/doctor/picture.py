"""A run and its reference band as a plot in characters."""

from collections.abc import Sequence

import numpy as np

from quillgpt.ascii_plot import MARGIN, AsciiPlot
from quillgpt.lab.bands.band import Band
from quillgpt.lab.bands.judge import Point


def picture(band: Band, points: Sequence[Point], *, width: int, height: int, is_ascii: bool = False) -> list[str]:
    """Lines of at most `width` characters: the loss over the steps, the band shaded, a mark for each point."""
    losses = np.array([point.loss for point in points])
    top = min(max(float(band.high.max()), losses.max()), 1.5 * float(band.high.max()))
    bottom = max(min(float(band.low.min()), losses.min()), 0.0)
    steps = band.tokens / band.tokens_per_step
    plot = AsciiPlot(
        width=max(2, width - MARGIN),
        height=height,
        x_limits=(float(steps[0]), float(steps[-1])),
        y_limits=(bottom, top),
        is_ascii=is_ascii,
    )
    plot.band(steps, band.low, band.high)
    plot.points(np.array([point.step for point in points]), np.clip(losses, bottom, top))
    return [line.plain.rstrip() for line in plot.lines("steps")]
