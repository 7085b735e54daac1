"""The picture shows a run where it is: in the shade, above it or below it."""

from quillgpt.ascii_plot import MARGIN, MARK, SHADE
from quillgpt.lab.bands.band import shipped_bands
from quillgpt.lab.bands.judge import Point
from quillgpt.lab.doctor.picture import picture

DEBUG = next(band for band in shipped_bands() if band.recipe == "debug")


def columns_of(shift: float) -> list[str]:
    """The columns with a mark, from the top, of a run that far above the middle of the band."""
    points = [
        Point(step=int(tokens) // DEBUG.tokens_per_step, loss=float(mean) + shift, low=0.0, high=0.0)
        for tokens, mean in zip(DEBUG.tokens, DEBUG.mean, strict=True)
    ]
    *rows, last = picture(DEBUG, points, width=72, height=15)
    assert max(map(len, [*rows, last])) <= 72
    assert last.split() == [str(points[0].step), "steps", str(DEBUG.steps)]
    columns = ["".join(column) for column in zip(*(row[MARGIN:].ljust(64) for row in rows), strict=True)]
    marked = [column for column in columns if MARK in column]
    assert len(marked) == len(points)
    return marked


def test_a_run_is_drawn_inside_above_or_below_its_band() -> None:
    for column in columns_of(0.0):
        assert column.index(SHADE) <= column.index(MARK) <= column.rindex(SHADE) or column.count(SHADE) <= 1
    assert all(column.index(MARK) < column.index(SHADE) for column in columns_of(1.0))
    assert all(column.rindex(MARK) > column.rindex(SHADE) for column in columns_of(-1.0))
