"""Intervals against scipy's tests, and against their promise: how often they contain the true difference."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quillgpt.errors import ConfigError
from quillgpt.lab.compare.statistics import MOST_SEEDS, Sample, holm, is_paired, paired, seeds_needed, welch


def sample(values, first_seed: int = 1) -> Sample:
    return Sample(by_seed=dict(enumerate(map(float, values), start=first_seed)))


def draws(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 0.04, n)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), m=st.integers(2, 40), scale=st.floats(0.01, 100))
def test_intervals_and_p_values_equal_those_of_scipys_tests(seed: int, n: int, m: int, scale: float) -> None:
    baseline, other, same_seeds = draws(seed, n), scale * draws(seed + 1, m) - scale, scale * draws(seed + 1, n)
    reordered = Sample(by_seed=dict(reversed(sample(same_seeds).by_seed.items())))
    for found, expected in (
        (welch(sample(baseline), sample(other, 7)), stats.ttest_ind(other, baseline, equal_var=False)),
        (paired(sample(baseline), reordered), stats.ttest_rel(same_seeds, baseline)),
    ):
        low, high = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((float(low), float(high)), rel=1e-7, abs=1e-9)
        assert found.p == pytest.approx(float(expected.pvalue), rel=1e-6, abs=1e-300)
        assert found.degrees_of_freedom == pytest.approx(float(expected.df), rel=1e-8)
        assert found.difference == pytest.approx((found.low + found.high) / 2)


def test_the_interval_contains_the_true_difference_in_95_of_100() -> None:
    """Without a difference, an interval without 0 is a false verdict. Two standard errors of the share are 0.014."""
    cases = [  # seeds, spread of the other group, shared noise, its first seed, true difference
        (3, 1.0, 0.0, 1, 0.0),
        (3, 1.0, 0.9, 1, 0.03),
        (5, 2.0, 0.6, 1, 0.0),
        (5, 1.0, 0.0, 100, 0.0),
        (6, 3.0, 0.0, 100, 0.03),
    ]
    for n, spread, shared, first_seed, difference in cases:
        random, contained = np.random.default_rng(7), 0
        for _ in range(1000):
            common, own, noise = random.normal(0, 0.04, (3, n))
            common *= math.sqrt(shared)
            baseline = sample(noise * math.sqrt(1 - shared) + common)
            other = sample(difference + spread * (own * math.sqrt(1 - shared) + common), first_seed)
            found = (paired if is_paired(baseline, other) else welch)(baseline, other)
            contained += found.low <= difference <= found.high
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        assert 0.935 <= contained / 1000 <= 0.97, (n, spread, shared, first_seed)


def test_the_paired_interval_decides_for_three_or_more_equal_seeds() -> None:
    assert is_paired(sample([1, 2, 3]), sample([3, 2, 1]))
    assert not is_paired(sample([1, 2]), sample([3, 2]))
    assert not is_paired(sample([1, 2, 3]), sample([3, 2, 1], first_seed=2))
    assert not is_paired(sample([1, 2, 3]), sample([3, 2, 1, 0]))


def test_seeds_needed_is_the_least_number_whose_half_width_is_below_the_difference() -> None:
    baseline, own = sample(draws(1, 4)), draws(2, 4) - draws(2, 4).mean()
    for first_seed in (1, 100):
        for difference in (0.02, 0.03, 0.09):
            other = sample(own + baseline.mean + difference, first_seed)

            def half_width(n: int, other: Sample = other, first_seed: int = first_seed) -> float:
                values = [np.array(list(one.by_seed.values())) for one in (baseline, other)]
                if first_seed == 1:
                    return stats.t.ppf(0.975, n - 1) * (values[1] - values[0]).std(ddof=1) / math.sqrt(n)
                a, b = (one.var(ddof=1) for one in values)
                return stats.t.ppf(0.975, (n - 1) * (a + b) ** 2 / (a**2 + b**2)) * math.sqrt((a + b) / n)

            needed = seeds_needed(baseline, other)
            assert 2 <= needed <= MOST_SEEDS
            assert half_width(needed) < difference
            assert needed == 2 or half_width(needed - 1) >= difference
    assert seeds_needed(sample([1, 2, 3]), sample([1, 2, 3.001], first_seed=9)) == MOST_SEEDS + 1
    assert seeds_needed(sample([1, 1, 1]), sample([1, 1, 1])) == MOST_SEEDS + 1
    assert seeds_needed(sample([1, 1, 1]), sample([2, 2, 2])) == 2


def test_groups_without_spread_have_an_interval_of_one_point() -> None:
    for method in (welch, paired):
        for value, expected in ((2, (0.0, 0.0, 1.0)), (3, (1.0, 1.0, 0.0))):
            found = method(sample([2, 2, 2]), sample([value] * 3))
            assert (found.low, found.high, found.p) == expected


def test_mean_and_deviation_of_few_runs() -> None:
    assert math.isnan(sample([]).mean)
    assert sample([2]).mean == 2
    assert math.isnan(sample([2]).standard_deviation)
    assert sample([1, 3]).standard_deviation == pytest.approx(math.sqrt(2))


def test_holms_p_values_equal_worked_examples() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 3 x 0.01, 2 x 0.03, then not less
    assert holm([0.02]) == [0.02]
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match=r"^scipy is not installed: pip install 'quillgpt\[lab\]'$"):
        welch(sample([1, 2]), sample([2, 3]))
