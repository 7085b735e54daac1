"""Plots in characters: the cells that are set are those of the numbers."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quillgpt.ascii_plot import MARGIN, AsciiPlot, plot_values, tick

FALLING = np.array([4.0, 3.0, 2.0, 1.0])


def cells(plot: AsciiPlot) -> list[str]:
    return [line.plain[MARGIN:] for line in plot.lines()]


def frame(*, low: float = 0.0, high: float = 10.0, is_logarithmic: bool = False, is_ascii: bool = False) -> AsciiPlot:
    limits = {"x_limits": (0.0, 3.0), "y_limits": (low, high)}
    return AsciiPlot(width=20, height=5, is_logarithmic=is_logarithmic, is_ascii=is_ascii, **limits)


def top_rows(plot: AsciiPlot) -> list[int]:
    """The first row in each column that is not empty."""
    return [column.index(next(cell for cell in column if cell != " ")) for column in zip(*cells(plot), strict=True)]


def test_a_falling_curve_falls_from_corner_to_corner_without_gaps() -> None:
    plot = frame(low=1.0, high=4.0)
    plot.curve(np.arange(4.0), FALLING)
    dots = np.array([[ord(cell) - 0x2800 if cell != " " else 0 for cell in row] for row in cells(plot)])
    assert dots[0, 0] & 0x01
    assert dots[4, 19] & 0x80
    rows = top_rows(plot)
    assert rows == sorted(rows)
    assert set(rows) == set(range(5))


def test_a_steep_curve_fills_its_column() -> None:
    for ends in ((0.0, 10.0), (10.0, 0.0)):
        plot = frame()
        plot.curve(np.array([0.0, 1.5, 1.5001, 3.0]), np.repeat(ends, 2))
        assert any(all(cell != " " for cell in column) for column in zip(*cells(plot), strict=True))


def test_a_logarithmic_curve_is_straight_if_it_falls_by_factors() -> None:
    straight, factors = frame(low=1.0, high=4.0), frame(low=1.0, high=1000.0, is_logarithmic=True)
    straight.curve(np.arange(4.0), FALLING)
    factors.curve(np.arange(4.0), 10 ** (FALLING - 1))
    assert np.abs(np.array(top_rows(straight)) - top_rows(factors)).max() <= 1


def test_with_ascii_only_there_are_letters_shades_and_rules_in_the_order_of_drawing() -> None:
    plot, ends = frame(is_ascii=True), np.array([0.0, 3.0])
    plot.level(9.9, "limit")
    plot.band(ends, np.full(2, 3.0), np.full(2, 7.0))
    plot.curve(ends, np.full(2, 5.0), letter="b")
    plot.points(np.array([0.0, 1.5]), np.array([5.0, 99.0]), letter="b")  # the second is outside
    assert cells(plot) == [f"{'-' * 14} limit", ":" * 20, f"B{'b' * 19}", ":" * 20, " " * 20]


def test_limits_are_named_at_the_ends_of_both_axes() -> None:
    *rows, last = [line.plain for line in frame(low=0.001, high=12_345.0).lines("steps")]
    assert (rows[0], rows[4]) == ("  12.3k│" + " " * 20, "  0.001│" + " " * 20)
    assert last == f"{' ' * MARGIN}0 steps{' ' * 12}3"


def test_values_are_averaged_over_equal_shares_oldest_left() -> None:
    lines = plot_values([10.0 - i / 100 for i in range(1000)], width=20, height=4)
    assert [line.split("│")[0].strip() for line in lines] == ["9.88", "", "", "0.13"]  # means of 25
    assert max(map(len, lines)) == MARGIN + 20
    assert plot_values([1.0, math.inf, math.nan, 0.0], width=20, height=4) == plot_values(
        [1.0, 0.0], width=20, height=4
    )
    assert plot_values([math.nan], width=20, height=4) == []


@given(st.lists(st.floats(), max_size=50), st.booleans())
def test_any_values_fit_the_frame(values: list[float], is_ascii: bool) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        lines = plot_values(values, width=10, height=3, is_ascii=is_ascii)
    assert len(lines) in (0, 3)
    assert all(len(line) <= MARGIN + 10 for line in lines)


def test_ticks_are_short() -> None:
    known = {200_000: "200k", 0.0003: "3e-4", 0.002: "0.002", 2.5: "2.5", 0: "0", 9.83e9: "9.83B", math.inf: ""}
    assert {value: tick(value) for value in known} == known
