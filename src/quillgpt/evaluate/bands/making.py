"""From the losses of several seeds to a band.

At a point the losses of n seeds have a mean m and a standard deviation s. One more run is drawn from what they were
drawn from, so it lies within t s sqrt(1 + 1/n) of m, where t is Student's at n - 1 degrees of freedom [Hahn 1991].

n is 8, a standard deviation of 8 values is off by a quarter as often as not, and t is 5.4. So the variance is pooled
with those of the points beside it, and that counts for as many degrees of freedom as the points are independent of
each other: (n - 1) (sum of variances)^2 / (sum of squared covariances), the degrees at which chi-square has the
pooled variance's own mean and variance [Satterthwaite 1946]. Points that go together count once, and n - 1 stays;
k independent ones give k (n - 1). Covariances of few seeds come out too large, and the interval with them.

The probability is that of one point. A band has tens of points, and a healthy run is outside at one of p points with
a probability of up to p (1 - level); it is less, because a run that is inside at a point is inside at the next.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quillgpt.evaluate.bands.band import Band
from quillgpt.student_t import two_sided_quantile

LEVEL = 0.999
MOST_POINTS = 40
POOLED = 4  # points on each side, about a window
WINDOW_SHARE = 10  # a window is this part of all lines
FEWEST_WINDOW_LINES = 4
FEWEST_SEEDS = 8
SMALLEST = 1e-6  # of what has a logarithm


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Means, pooled standard deviations and prediction intervals, each (n,), for n points."""

    mean: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray


def prediction_interval(values: np.ndarray, *, level: float = LEVEL, pooled: int = POOLED) -> Interval:
    """Where one more row of `values` (runs, points) lies at each point, with probability `level`."""
    runs, points = values.shape
    covariance = np.atleast_2d(np.cov(values, rowvar=False))
    spread, reach = np.empty(points), np.empty(points)
    for point in range(points):
        beside = slice(max(0, point - pooled), point + pooled + 1)
        near = covariance[beside, beside]
        spread[point] = math.sqrt(near.trace() / len(near))
        t = two_sided_quantile(level, effective_degrees(near, runs))
        reach[point] = t * math.sqrt(1.0 + 1.0 / runs) * spread[point]
    mean = values.mean(axis=0)
    return Interval(mean=mean, spread=spread, low=mean - reach, high=mean + reach)


def effective_degrees(covariance: np.ndarray, runs: int) -> int:
    """Degrees of freedom of the mean of the variances on the diagonal, estimated from `runs` runs; (k, k) -> whole."""
    squares = float(np.square(covariance).sum())
    if squares == 0.0:
        return runs - 1
    return max(runs - 1, int((runs - 1) * covariance.trace() ** 2 / squares))


def window_lines(lines: int) -> int:
    """Lines that a smoothed loss is the mean over, for runs of so many lines."""
    return max(FEWEST_WINDOW_LINES, round(lines / WINDOW_SHARE))


def points_of(lines: int) -> np.ndarray:
    """The lines, counted from 1, that become points: from the first full window on, at most 40, the last among them."""
    first = window_lines(lines)
    stride = -(-(lines - first + 1) // MOST_POINTS)
    return np.arange(lines, first - 1, -stride)[::-1]


def smoothed(losses: np.ndarray, window: int) -> np.ndarray:
    """The mean over the last `window` of the losses (..., lines) up to each, (..., lines - window + 1)."""
    return np.lib.stride_tricks.sliding_window_view(losses, window, axis=-1).mean(axis=-1)


def scatter(losses: Sequence[float] | np.ndarray) -> float:
    """How far the mean loss of a line lies from the trend: a standard deviation that a few spikes do not move.

    From second differences, in which a straight trend cancels, of all lines but the first quarter: their median size is
    0.6745 sqrt(6) standard deviations of independent normal noise. 0 for fewer than 4 lines.
    """
    later = np.asarray(losses, dtype=np.float64)[len(losses) // 4 :]
    if len(losses) < 4:
        return 0.0
    return float(np.median(np.abs(np.diff(later, n=2)))) / (0.6745 * math.sqrt(6.0))


def make_band(
    losses: np.ndarray, gradient_norms: np.ndarray, *, about: Mapping[str, Any], tokens_per_step: int, log_every: int
) -> Band:
    """The band of runs that logged these mean losses (runs, lines) every `log_every` steps; `about` tells the rest.

    Gradient norms and scatters are positive and vary by factors, so their intervals are made from their logarithms.
    """
    runs, lines = losses.shape
    if runs < 2 or lines < FEWEST_WINDOW_LINES:
        raise ValueError(f"a band of {runs} runs and {lines} lines: at least 2 and {FEWEST_WINDOW_LINES}")
    window = window_lines(lines)
    points = points_of(lines)
    at = points - window
    loss = prediction_interval(smoothed(losses, window)[:, at])
    norm = prediction_interval(smoothed(np.log(np.maximum(gradient_norms, SMALLEST)), window)[:, at])
    one = prediction_interval(np.log([[max(scatter(run), SMALLEST)] for run in losses]))
    band = Band(
        **about,
        tokens_per_step=tokens_per_step,
        log_every=log_every,
        window_tokens=window * log_every * tokens_per_step,
        level=LEVEL,
        scatter=round(math.exp(one.mean[0]), 5),
        scatter_high=round(math.exp(one.high[0]), 5),
        tokens=points * float(log_every * tokens_per_step),
        mean=loss.mean,
        spread=loss.spread,
        low=loss.low,
        high=loss.high,
        lr_multiplier=np.zeros(len(points)),
        gradient_norm=np.exp(norm.mean),
        gradient_norm_high=np.exp(norm.high),
    )
    return replace(band, lr_multiplier=np.array([band.multiplier(int(line) * log_every) for line in points]))
