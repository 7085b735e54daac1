"""Student's t distribution for any real degrees of freedom from 1 on, in float64 and a dozen lines.

With t = sqrt(df) tan(angle) the density is proportional to cos(angle)^(df - 1): smooth and bounded, so that Gauss's
rule with `NODES` finds the last digits. With many degrees of freedom it is a narrow bell, of which nothing is left
beyond `FARTHEST` of its standard deviations.
"""

import math

import numpy as np

NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)
FARTHEST = 20.0


def two_sided_p(t: float, degrees_of_freedom: float) -> float:
    """The probability of a value at least as far from 0 as t."""
    return max(0.0, 1.0 - _within(math.atan(abs(t) / math.sqrt(degrees_of_freedom)), degrees_of_freedom))


def two_sided_quantile(confidence: float, degrees_of_freedom: float) -> float:
    """The t between whose negative and itself a value lies with this probability: 12.706 for 0.95 and 1 degree."""
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, degrees_of_freedom) < confidence else (low, middle)
    return math.sqrt(degrees_of_freedom) * math.tan(low)


def _within(angle: float, degrees_of_freedom: float) -> float:
    """The probability of |t| <= sqrt(df) tan(angle): the integral up to the angle over that up to pi / 2."""
    half = degrees_of_freedom / 2
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(half) - math.lgamma(half + 0.5))
    end = min(angle, FARTHEST / math.sqrt(degrees_of_freedom))
    cosines = np.cos(end / 2 * (NODES + 1))
    return min(1.0, end / 2 * float(WEIGHTS @ np.exp((degrees_of_freedom - 1) * np.log(cosines))) / whole)
