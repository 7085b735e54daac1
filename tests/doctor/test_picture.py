"""The picture shows a run where it is: in the shade, above it or below it."""

import pytest

from quillgpt.doctor.picture import BAND, RUN, picture
from quillgpt.evaluate.bands import shipped_bands
from quillgpt.evaluate.bands.judging import Point

DEBUG = next(band for band in shipped_bands() if band.recipe == "debug")


def columns_of(shift: float) -> list[str]:
    """The picture's columns, from the top, of a run so far above the middle of the band."""
    points = [
        Point(step=int(tokens) // DEBUG.tokens_per_step, loss=float(mean) + shift, low=0.0, high=0.0)
        for tokens, mean in zip(DEBUG.tokens, DEBUG.mean, strict=True)
    ]
    lines = picture(DEBUG, points, width=72, height=15)
    assert max(map(len, lines)) <= 72
    rows = [line[7:].ljust(65) for line in lines[:-1]]
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    assert sum(RUN in column for column in columns) == len(points)
    return [column for column in columns if RUN in column]


def test_a_run_in_the_middle_of_its_band_is_drawn_there() -> None:
    for column in columns_of(0.0):
        assert column.index(BAND) <= column.index(RUN) <= column.rindex(BAND) or column.count(BAND) <= 1


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_a_run_outside_is_drawn_on_its_side(shift: float) -> None:
    for column in columns_of(shift):
        if shift > 0:
            assert column.index(RUN) < column.index(BAND)
        else:
            assert column.rindex(RUN) > column.rindex(BAND)
