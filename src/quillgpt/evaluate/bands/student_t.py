"""Student's t distribution for whole degrees of freedom, where it has a closed form."""

import functools
import math

BISECTIONS = 200  # more than enough for the last bit of a float


def two_sided_probability(t: float, degrees: int) -> float:
    """P(|T| <= t) [Abramowitz 1964, 26.7.3 and 26.7.4]."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine_squared = math.cos(angle) ** 2
    is_odd = degrees % 2 == 1
    term = math.cos(angle) if is_odd else 1.0
    series = 0.0
    for k in range(1 if is_odd else 0, degrees - 1, 2):
        series += term
        term *= cosine_squared * (k + 1) / (k + 2)
    if not is_odd:
        return math.sin(angle) * series
    return 2.0 / math.pi * (angle + math.sin(angle) * series)


@functools.cache
def two_sided_quantile(probability: float, degrees: int) -> float:
    """The t >= 0 for which P(|T| <= t) is the probability."""
    if not 0.0 <= probability < 1.0 or degrees < 1:
        raise ValueError(f"no quantile of t for probability {probability} and {degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if two_sided_probability(math.tan(middle) * math.sqrt(degrees), degrees) < probability:
            low = middle
        else:
            high = middle
    return math.tan((low + high) / 2) * math.sqrt(degrees)
