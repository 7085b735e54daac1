"""Smoothing and thinning of series, compared with the definitions computed point by point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quillgpt.lab.report.series import (
    as_number,
    evenly,
    finite,
    sampled,
    smoothed,
    smoothing_window,
    spans,
    trailing_means,
)

RANDOM = np.random.default_rng(7)


def test_smoothing_equals_the_triangular_mean() -> None:
    y = RANDOM.normal(size=300)
    half = smoothing_window(300) // 2
    assert half == 9
    _, means = smoothed(np.arange(300.0), y, most=300)
    for index in (0, 4, 150, 295, 299):
        reach = min(half, index)
        pairs = [(reach + 1 - abs(at - index), y[at]) for at in range(index - reach, min(300, index + reach + 1))]
        expected = sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)
        assert means[index] == pytest.approx(expected, abs=1e-12)
    few = y[:19]  # too few to be smoothed
    assert smoothed(np.arange(19.0), few, most=100)[1].tolist() == few.tolist()


@given(st.integers(1, 5_000), st.integers(2, 100))
def test_thinned_points_are_bounded_in_order_and_keep_both_ends(count: int, most: int) -> None:
    x, y = np.arange(float(count)), np.linspace(3, 1, count)
    for drawn, values, *_ in (smoothed(x, y, most=most), spans(x, y, most=most), sampled(x, y, most=most)):
        assert len(drawn) == len(values) <= most
        assert (np.diff(drawn) > 0).all()
    assert evenly(count, most)[[0, -1]].tolist() == [0, count - 1]


def test_the_range_of_shares_loses_no_spike() -> None:
    y = np.zeros(10_000)
    y[[0, 4321, 9999]] = 5.0, -7.0, 9.0
    x, low, high = spans(np.arange(10_000.0), y, most=60)
    assert len(x) == 60
    assert {5.0, 9.0} <= set(high.tolist())
    assert -7.0 in low


def test_only_finite_numbers_are_drawn() -> None:
    x, y = finite(np.array([1.0, 2.0, np.inf, 4.0, 5.0]), np.array([1.0, np.nan, 3.0, np.inf, 1e200]))
    assert (x.tolist(), y.tolist()) == ([1.0], [1.0])
    assert [as_number(value) for value in (None, "3", True, [1], float("nan"), float("inf"), 10**400, 1e300)] == [
        None
    ] * 8
    assert as_number(3) == 3.0


def test_trailing_means_equal_the_mean_of_the_tokens_in_the_window() -> None:
    lengths = RANDOM.integers(1, 30, size=80)
    tokens = np.cumsum(lengths).astype(float)
    losses = RANDOM.normal(size=80)
    each = np.repeat(losses, lengths)  # the loss of every single token
    x, means = trailing_means(tokens, losses, 100.0, most=1_000)
    assert x[0] >= 100
    for place, mean in zip(x.astype(int), means, strict=True):
        first = np.searchsorted(tokens, place - 100, side="right")  # the first line that ends inside the window
        assert mean == pytest.approx(each[int(tokens[first] - lengths[first]) : place].mean())
