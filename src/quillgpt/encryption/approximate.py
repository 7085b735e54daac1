"""How high a degree a polynomial needs in place of a function, and how deep its evaluation is."""

import math
from collections.abc import Callable

import numpy as np

from quillgpt.encryption.layout import Numbers

LARGEST_DEGREE = (1 << 15) - 1
FINER = 8  # the error is looked at between the points of interpolation too

Function = Callable[[Numbers], Numbers]


def least_degree(function: Function, low: float, high: float, allowed: Function) -> int:
    """The least degree whose interpolation at Chebyshev's points errs at most `allowed(x)` for x from low to high.

    A best polynomial can be a little better, by less than what changes the depth much. `LARGEST_DEGREE` + 1 says that
    none was found.
    """
    enough = 1
    while not _is_enough(function, low, high, allowed, enough):
        enough = 2 * enough + 1
        if enough > LARGEST_DEGREE:
            return LARGEST_DEGREE + 1
    too_few = enough // 2
    while enough - too_few > 1:
        degree = (enough + too_few) // 2
        if _is_enough(function, low, high, allowed, degree):
            enough = degree
        else:
            too_few = degree
    return enough


def polynomial_depth(degree: int) -> int:
    """ceil(log2(degree + 1)), the least there is, reached by [Bossuat 2021]; a constant factor costs no level."""
    return degree.bit_length()


def newton_depth(low: float, high: float, accuracy: float) -> int:
    """Levels of 1/√x by y <- y (3 - x y²) / 2, from y = 1/√high until the relative error is small [Panda 2022].

    Two levels a step: x y and y², then their product. The first step is linear in x and takes none.
    """
    correct, steps = math.sqrt(low / high), 0
    while 1 - correct > accuracy:
        correct, steps = correct * (3 - correct**2) / 2, steps + 1
    return 2 * max(0, steps - 1)


def goldschmidt_depth(low: float, high: float, accuracy: float) -> int:
    """Levels of 1/x = y (1 + e)(1 + e²)(1 + e⁴)..., e = 1 - x y, from y = 2 / (low + high) [Goldschmidt 1964].

    e² and the product so far are computed side by side: a level for each factor; the first is linear in x.
    """
    log_error = math.log1p(-2 * low / (low + high)) if low < high else -math.inf  # of e at the ends
    factors = math.ceil(math.log2(max(1.0, math.log(accuracy) / log_error)))  # each doubles it
    return factors if factors > 1 else 0


def _is_enough(function: Function, low: float, high: float, allowed: Function, degree: int) -> bool:
    coefficients = _transform(function(_points(low, high, degree + 1)))
    coefficients[0] /= 2
    x = _points(low, high, FINER * (degree + 8))
    return bool(np.all(np.abs(_evaluated(coefficients, len(x)) - function(x)) <= allowed(x)))


def _points(low: float, high: float, count: int) -> Numbers:
    """Chebyshev's points of the first kind, from high to low."""
    return (low + high) / 2 + (high - low) / 2 * np.cos((np.arange(count) + 0.5) * math.pi / count)


def _transform(values: Numbers) -> Numbers:
    """2/n times the sum over points j of value_j cos(k (j + 1/2) pi / n): Chebyshev coefficients, by an FFT."""
    count = len(values)
    spectrum = np.fft.rfft(np.concatenate([values, values[::-1]]))[:count]
    return (spectrum * np.exp(-0.5j * math.pi * np.arange(count) / count)).real / count


def _evaluated(coefficients: Numbers, count: int) -> Numbers:
    """The sum over k of coefficient_k cos(k (j + 1/2) pi / n) at n = count points."""
    spectrum = np.zeros(count + 1, dtype=np.complex128)
    spectrum[: len(coefficients)] = coefficients * np.exp(0.5j * math.pi * np.arange(len(coefficients)) / count)
    spectrum[0] *= 2
    return np.fft.irfft(spectrum, 2 * count)[:count] * count
