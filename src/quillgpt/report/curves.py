"""A long curve by a bounded number of points: its course smoothed, its noise by the extremes of equal shares."""

import itertools

import numpy as np

FAR = 1e100  # its square is still a number
Points = tuple[np.ndarray, np.ndarray]
"""x and y, (n,) float64 each"""


def as_number(value: object) -> float | None:
    """A value of a record if it is a number that can be drawn and counted, otherwise None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < FAR else None  # NaN is not below anything


def finite(x: np.ndarray, y: np.ndarray) -> Points:
    """Those points that can be drawn."""
    drawable = np.isfinite(x) & np.isfinite(y) & (np.abs(y) < FAR)
    return x[drawable], y[drawable]


def smoothing_window(count: int) -> int:
    """How many logged lines a smoothed point is made of: about 6 % of them, an odd number; few are not smoothed."""
    return max(7, count * 6 // 100) | 1 if count >= 20 else 1


def smoothed(x: np.ndarray, y: np.ndarray, *, most: int) -> Points:
    """Centred means, near lines counting more, at no more than `most` of the points, the first and last among them.

    At the beginning, where a loss falls steeply, the window shrinks to what is there on both sides; at the end to what
    is there, so that the last point is a mean too.
    """
    half = smoothing_window(len(y)) // 2
    chosen = evenly(len(y), most)
    return x[chosen], np.array([_mean_around(y, index, half) for index in chosen.tolist()], dtype=np.float64)


def _mean_around(y: np.ndarray, index: int, half: int) -> float:
    reach = min(half, index)
    around = y[index - reach : index + reach + 1]
    weights = reach + 1.0 - np.abs(np.arange(len(around)) - reach)
    return float(around @ weights / weights.sum())


def spans(x: np.ndarray, y: np.ndarray, *, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lowest and the highest of `most` equal shares of the points, so that no spike is lost: x, low, high."""
    bounds = np.linspace(0, len(y), min(most, len(y)) + 1).astype(int)
    shares = [y[start:stop] for start, stop in itertools.pairwise(bounds.tolist())]
    middles = [(start + stop - 1) // 2 for start, stop in itertools.pairwise(bounds.tolist())]
    return x[middles], np.array([share.min() for share in shares]), np.array([share.max() for share in shares])


def sampled(*columns: np.ndarray, most: int) -> tuple[np.ndarray, ...]:
    """The same rows of all columns: no more than `most`, evenly chosen, the first and the last among them."""
    chosen = evenly(len(columns[0]), most)
    return tuple(column[chosen] for column in columns)


def evenly(count: int, most: int) -> np.ndarray:
    """No more than `most` of `count` indices, in order, the first and the last among them."""
    if count == 0:
        return np.zeros(0, dtype=int)
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
