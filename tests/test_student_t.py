"""Student's t against scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from quillgpt.student_t import two_sided_p, two_sided_quantile

DEGREES = [1.0, 1.3, 1.9, 2.0, 2.7, 3.0, 4.6, 8.0, 15.5, 29.9, 30.1, 77.0, 162.0, 1000.0, 1e5]


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("confidence", [0.01, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_quantile_equals_scipys(confidence: float, degrees: float) -> None:
    expected = float(stats.t.ppf((1 + confidence) / 2, degrees))
    assert two_sided_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("t", [0.0, 1e-3, 0.7, -2.0, 5.0, 40.0, 300.0])
def test_p_value_equals_scipys(t: float, degrees: float) -> None:
    assert two_sided_p(t, degrees) == pytest.approx(2 * float(stats.t.sf(abs(t), degrees)), abs=1e-9)


def test_quantile_in_closed_form() -> None:
    assert two_sided_quantile(0.95, 1.0) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-12)  # Cauchy
    assert two_sided_quantile(0.5, 2.0) == pytest.approx(math.sqrt(2 * 0.25 / 0.75), rel=1e-12)


def test_a_narrow_bell_is_found_however_far_t_is() -> None:
    """With 1e5 degrees of freedom the bell is 0.003 wide, and the nodes of a rule over all angles pass it by."""
    for t in np.geomspace(0.1, 1e5, 100):
        assert two_sided_p(t, 1e5) == pytest.approx(2 * float(stats.t.sf(t, 1e5)), abs=1e-9)
