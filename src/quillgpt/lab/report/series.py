"""Series of numbers from records: which can be drawn, smoothed and thinned to a bounded number of points."""

import itertools

import numpy as np

FAR = 1e100  # larger numbers are not drawn; its square is still a float


def as_number(value: object) -> float | None:
    """A value of a record if it is a number that can be drawn, otherwise None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < FAR else None  # NaN is not less than anything


def finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points that can be drawn; x, y: (n,)."""
    drawable = np.isfinite(x) & np.isfinite(y) & (np.abs(y) < FAR)
    return x[drawable], y[drawable]


def smoothing_window(count: int) -> int:
    """How many logged lines a smoothed point is the mean of: about 6 %, an odd number; 1 for few lines."""
    return max(7, count * 6 // 100) | 1 if count >= 20 else 1


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices in order, with the first and the last."""
    if count == 0:
        return np.zeros(0, dtype=int)
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def limits_around(values: np.ndarray, *, include: tuple[float, ...] = (), is_logarithmic: bool = False) -> tuple:
    """Axis limits with a margin around the finite values and the included ones; never equal."""
    known = np.concatenate([values[np.isfinite(values)], np.array(include, dtype=np.float64)])
    if is_logarithmic:
        known = known[known > 0]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if is_logarithmic:
        return (low / 1.25, high * 1.25)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return (low - margin, high + margin)


def smoothed(x: np.ndarray, y: np.ndarray, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Centred means of y, (n,), with triangular weights, at no more than `most` points, the first and last included.

    At the beginning, where a loss falls steeply, the window shrinks on both sides; at the end, on the right only.
    """
    half = smoothing_window(len(y)) // 2
    chosen = evenly(len(y), most)
    means = np.empty(len(chosen))
    for place, index in enumerate(chosen.tolist()):
        reach = min(half, index)
        around = y[index - reach : index + reach + 1]
        weights = reach + 1.0 - np.abs(np.arange(len(around)) - reach)
        means[place] = around @ weights / weights.sum()
    return x[chosen], means


def spans(x: np.ndarray, y: np.ndarray, *, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, lowest y and highest y of `most` equal shares of the points, so that no spike is lost."""
    bounds = itertools.pairwise(np.linspace(0, len(y), min(most, len(y)) + 1).astype(int).tolist())
    shares = [((start + stop - 1) // 2, y[start:stop]) for start, stop in bounds]
    low, high = np.array([share.min() for _, share in shares]), np.array([share.max() for _, share in shares])
    return x[[middle for middle, _ in shares]], low, high


def sampled(*columns: np.ndarray, most: int) -> tuple[np.ndarray, ...]:
    """The same rows of all columns, (n,) each: at most `most`, evenly chosen, the first and the last included."""
    chosen = evenly(len(columns[0]), most)
    return tuple(column[chosen] for column in columns)


def trailing_means(tokens: np.ndarray, losses: np.ndarray, window: float, *, most: int) -> tuple[np.ndarray, ...]:
    """Means over the window of tokens before a point, each line weighted by its tokens, at no more than `most` points.

    tokens, losses: (n,). Points with less than a window before them are left out.
    """
    if not len(tokens):
        return tokens, losses
    weights = np.diff(tokens, prepend=0.0)
    starts = np.searchsorted(tokens, tokens - window, side="right")
    full = np.flatnonzero(tokens >= window * (1 - 1e-9))
    chosen = full[evenly(len(full), most)]
    means = []
    for index in chosen.tolist():
        part = slice(int(starts[index]), index + 1)
        means.append(float(losses[part] @ weights[part] / max(weights[part].sum(), 1e-9)))
    return tokens[chosen], np.array(means, dtype=np.float64)
