import numpy as np
import pytest

from quillgpt.report.curves import as_number, evenly, finite, sampled, smoothed, smoothing_window, spans
from quillgpt.report.reference import trailing_means

RANDOM = np.random.default_rng(7)


def test_smoothing_equals_the_weighted_mean_written_out() -> None:
    y = RANDOM.normal(size=300)
    half = smoothing_window(300) // 2
    assert half == 9
    _, means = smoothed(np.arange(300.0), y, most=300)
    for index in (0, 4, 150, 295, 299):
        reach = min(half, index)
        pairs = [(reach + 1 - abs(at - index), y[at]) for at in range(index - reach, min(300, index + reach + 1))]
        expected = sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)
        assert means[index] == pytest.approx(expected, abs=1e-12)


def test_smoothing_keeps_the_first_point_and_straight_lines() -> None:
    x = np.arange(200.0)
    _, means = smoothed(x, 3 * x + 1, most=200)
    half = smoothing_window(200) // 2
    np.testing.assert_allclose(means[: 200 - half], 3 * x[: 200 - half] + 1)


def test_few_points_are_not_smoothed() -> None:
    y = RANDOM.normal(size=19)
    assert smoothed(np.arange(19.0), y, most=100)[1].tolist() == y.tolist()


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 5_000])
def test_what_is_drawn_is_bounded_and_in_order(count: int) -> None:
    x, y = np.arange(float(count)), RANDOM.normal(size=count)
    for drawn, values, *_ in (smoothed(x, y, most=100), spans(x, y, most=100), sampled(x, y, most=100)):
        assert len(drawn) == len(values) <= 100
        assert (np.diff(drawn) > 0).all()
    assert evenly(count, 100)[[0, -1]].tolist() == [0, count - 1]


def test_the_span_of_the_lines_loses_no_spike() -> None:
    y = np.zeros(10_000)
    y[[0, 4321, 9999]] = 5.0, -7.0, 9.0
    x, low, high = spans(np.arange(10_000.0), y, most=60)
    assert len(x) == 60
    assert {5.0, 9.0} <= set(high.tolist())
    assert -7.0 in low


def test_only_finite_points_are_drawn() -> None:
    x, y = finite(np.array([1.0, 2.0, np.inf, 4.0, 5.0]), np.array([1.0, np.nan, 3.0, np.inf, 1e200]))
    assert (x.tolist(), y.tolist()) == ([1.0], [1.0])


@pytest.mark.parametrize("value", [None, "3", True, [1], float("nan"), float("inf"), 10**400, 1e300])
def test_what_is_no_number_is_none(value: object) -> None:
    assert as_number(value) is None
    assert as_number(3) == 3.0


def test_trailing_means_equal_the_mean_of_the_tokens_in_the_window() -> None:
    lengths = RANDOM.integers(1, 30, size=80)
    tokens = np.cumsum(lengths).astype(float)
    losses = RANDOM.normal(size=80)
    each = np.repeat(losses, lengths)  # the loss of every single token
    x, means = trailing_means(tokens, losses, 100.0, most=1_000)
    assert x[0] >= 100
    for place, mean in zip(x.astype(int), means, strict=True):
        begin = place - 100
        whole_lines = int(
            tokens[np.searchsorted(tokens, begin, side="right")] - lengths[np.searchsorted(tokens, begin, side="right")]
        )
        assert mean == pytest.approx(each[whole_lines:place].mean())
