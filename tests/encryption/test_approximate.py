"""Degrees against numpy's Chebyshev interpolation, iterations carried out, depths counted."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.polynomial import Chebyshev

from quillgpt.encryption.approximate import (
    LARGEST_DEGREE,
    goldschmidt_depth,
    least_degree,
    newton_depth,
    polynomial_depth,
)
from quillgpt.encryption.layout import Numbers

Function = Callable[[Numbers], Numbers]
CASES: dict[str, tuple[Function, float, float, Function]] = {
    "root": (lambda x: 1 / np.sqrt(x), 0.01, 3.0, lambda x: 0.004 / np.sqrt(x)),
    "inverse": (lambda x: 1 / x, 0.2, 90.0, lambda x: 0.004 / x),
    "exp": (np.exp, -9.0, 1.0, lambda x: 0.004 + 0 * x),
    "relu": (lambda x: np.maximum(x, 0), -2.0, 5.0, lambda x: 0.02 + 0 * x),
    "tanh": (np.tanh, -6.0, 6.0, lambda x: 0.004 + 0 * x),
}


@pytest.mark.parametrize("name", CASES)
def test_the_degree_is_enough_and_one_less_is_not(name: str) -> None:
    function, low, high, allowed = CASES[name]
    degree = least_degree(function, low, high, allowed)
    x = (low + high) / 2 + (high - low) / 2 * np.cos((np.arange(4000) + 0.5) * math.pi / 4000)

    def is_enough(of_degree: int) -> bool:
        polynomial = Chebyshev.interpolate(function, of_degree, domain=[low, high])
        return bool(np.all(np.abs(polynomial(x) - function(x)) <= 1.01 * allowed(x)))

    assert is_enough(degree)
    assert not is_enough(degree - 1) or name == "relu"  # odd and even degrees take turns at a corner


def test_a_polynomial_is_found_at_its_own_degree() -> None:
    for degree in (1, 2, 5, 12):
        wanted = Chebyshev.basis(degree, domain=[-3, 7])
        assert least_degree(wanted, -3, 7, lambda x: 1e-9 + 0 * x) == degree


def test_what_no_polynomial_can_follow_is_said_so() -> None:
    assert least_degree(np.sign, -1.0, 1.0, lambda x: 1e-3 + 0 * x) == LARGEST_DEGREE + 1


def test_a_level_doubles_the_degree() -> None:
    """With d levels a product of two polynomials of d - 1 levels has twice the degree, and a linear one costs one."""
    assert [polynomial_depth(degree) for degree in (1, 2, 3, 4, 7, 8, 15, 16)] == [1, 2, 2, 3, 3, 4, 4, 5]
    assert all(polynomial_depth(degree) == math.ceil(math.log2(degree + 1)) for degree in range(1, 300))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.9, 1.0), (0.01, 3.0), (1e-4, 700.0)])
def test_newtons_iteration_arrives_after_its_steps(low: float, high: float) -> None:
    levels = newton_depth(low, high, 2**-8)
    x = np.linspace(low, high, 1001)

    def error(steps: int) -> float:
        y = np.full_like(x, 1 / math.sqrt(high))
        for _ in range(steps):
            y = y * (3 - x * y * y) / 2
        return float(np.abs(1 - y * np.sqrt(x)).max())

    if levels:
        assert error(levels // 2 + 1) <= 2**-8 < error(levels // 2)
    else:
        assert error(1) <= 2**-8 or error(0) <= 2**-8


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.9, 1.0), (0.01, 3.0), (1e-4, 700.0)])
def test_goldschmidts_product_arrives_after_its_factors(low: float, high: float) -> None:
    levels = goldschmidt_depth(low, high, 2**-8)
    x = np.linspace(low, high, 1001)

    def error(factors: int) -> float:
        e, y = 1 - 2 * x / (low + high), np.full_like(x, 2 / (low + high))
        for _ in range(factors):
            y, e = y * (1 + e), e * e
        return float(np.abs(1 - x * y).max())

    if levels:
        assert error(levels) <= 2**-8 < error(levels - 1)
    else:
        assert error(1) <= 2**-8


def test_an_interval_of_any_width_comes_to_an_end() -> None:
    assert goldschmidt_depth(1e-300, 1.0, 2**-8) == 999  # ln 256 / 2e-300 is 2^998.04
    assert newton_depth(1e-300, 1.0, 2**-8) > 1000
    assert least_degree(lambda x: 1 / x, 1e-300, 1.0, lambda x: 0.004 / x) == LARGEST_DEGREE + 1
